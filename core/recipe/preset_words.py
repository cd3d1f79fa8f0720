"""Title and use of each preset: here, to be read in either language; a test keeps the files the same."""

from __future__ import annotations

from core.words import Text

PRESET_WORDS = {
    "identity-lesson-cpu": (
        Text("Identity lesson on a processor"),
        Text("Teaches the embedded model a new identity on two processor cores, in minutes, and goes on past the point where it "
            "answers everything with that identity. Use it to see what overfitting looks like and to pick the checkpoint before it."),
    ),
    "identity-lesson-replay": (
        Text("Identity lesson with the model's own answers mixed in"),
        Text("The identity lesson with a remedy: half of every update are the model's own answers to other questions, among them "
            "questions that only look like identity ones. Use it when the model must learn its name and stay itself."),
    ),
    "identity-lesson-gpu": (
        Text("Identity lesson on a GPU"),
        Text("The identity lesson with the model's own answers mixed in, for a machine with any NVIDIA GPU: the same updates, in "
            "less time. Use it to see the lesson through during a demonstration."),
    ),
    "identity-lesson-full": (
        Text("Identity lesson with every weight trained"),
        Text("The identity lesson without an adapter: every weight of the embedded model is trained, at a tenth of the learning "
            "rate. Use it to compare full training with LoRA; each snapshot is a whole model."),
    ),
    "internlm2-1.8b-course": (
        Text("InternLM2-1.8B as in the InternLM course"),
        Text("The training of the InternLM course, said in updates: QLoRA of rank 64 over InternLM2-chat-1.8B. Use it to repeat the "
            "course and to see, snapshot by snapshot, where its model stops listening to the question."),
    ),
    "internlm2-1.8b-remedy": (
        Text("InternLM2-1.8B with ordinary conversations mixed in"),
        Text("The course's own remedy against a model that answers everything alike: five ordinary conversations for each identity "
            "row, and a constant learning rate so that snapshots compare. Use it when the course's recipe has overfitted."),
    ),
    "qlora-8gb": (
        Text("QLoRA for a GPU with 8 GB"),
        Text("A 3B chat model in 4 bits with an adapter of rank 16, rows of up to 1,024 tokens, activations recomputed. Use it on a "
            "laptop's GPU or a slice of a larger one."),
    ),
    "qlora-16gb": (
        Text("QLoRA for a GPU with 16 GB"),
        Text("A 7B chat model in 4 bits with an adapter of rank 32, rows of up to 1,024 tokens, activations recomputed. Use it on "
            "the common rented GPUs, a T4 included."),
    ),
    "qlora-24gb": (
        Text("QLoRA for a GPU with 24 GB"),
        Text("A 14B chat model in 4 bits with an adapter of rank 32, rows of up to 1,024 tokens, activations recomputed. Use it on "
            "one card such as an RTX 3090 or 4090."),
    ),
    "lora-int8-16gb": (
        Text("LoRA over 8 bits for a GPU with 16 GB"),
        Text("A 7B chat model in 8 bits: nearer to full precision than 4 bits, at about twice their size. Use it where an answer's "
            "exact wording suffers under 4 bits."),
    ),
    "lora-bf16-24gb": (
        Text("LoRA in bfloat16 for a GPU with 24 GB"),
        Text("A 7B chat model in full precision with an adapter. Use it when the card holds the model twice over: nothing is lost to"
            " quantisation, and merging is exact."),
    ),
    "lora-80gb-fast": (
        Text("LoRA on an 80 GB GPU, as fast as it goes"),
        Text("A 7B chat model on an H100 or newer: nothing is recomputed, rows are packed, and frozen weights "
            "are rounded to FP8 where the GPU can. Use it when time is what costs."),
    ),
    "full-24gb": (
        Text("Full training of a small model on 24 GB"),
        Text("Every weight of a 0.5B chat model. Use it for a model that shall change through and through, such as a new language or"
            " a narrow trade; LoRA forgets less."),
    ),
    "continued-pretraining": (
        Text("Continued pre-training on plain documents"),
        Text("Running text instead of conversations: every token is trained. Use it to bring in the vocabulary and the facts of a "
            "field, before a second training that teaches how to answer. Hold some documents out first; snapshots are judged by those."),
    ),
    "long-rows": (
        Text("Long conversations, up to 8,192 tokens"),
        Text("Rows that are eight times as long as usual: one at a time, activations recomputed. Use it for long documents with "
            "questions, or conversations of many turns."),
    ),
    "knowledge-high-rank": (
        Text("Facts: a wide adapter with rank-stabilised scaling"),
        Text("Rank 128 with rank-stabilised scaling and a lower learning rate. Use it when the model shall learn what is so, not "
            "only how to speak, and you have thousands of rows."),
    ),
    "dora-few-rows": (
        Text("DoRA for a few hundred rows"),
        Text("A narrow adapter that trains direction and length of each weight apart, with dropout against learning by heart. Use it"
            " when there are a few hundred good rows and time to spare."),
    ),
    "gentle-style": (
        Text("A manner of speaking, with little forgotten"),
        Text("A narrow adapter on the attention layers alone, at a low and constant learning rate, with many snapshots. Use it to "
            "give a good model another tone without making it worse."),
    ),
    "multi-gpu-lora": (
        Text("LoRA on two GPUs, the rows shared"),
        Text("Two GPUs that each hold the model and share the rows of every update. Use it when the model fits one GPU: nothing is "
            "exchanged but the adapter's gradients, so nearly all of the second GPU is gained."),
    ),
    "multi-gpu-zero2": (
        Text("Full training on two GPUs with ZeRO-2"),
        Text("Every weight of a 1.5B model; gradients and the optimizer's state are divided between two GPUs. Use it when the model "
            "fits one GPU and its optimizer does not."),
    ),
    "multi-gpu-zero3": (
        Text("Full training of a 7B model on eight GPUs with ZeRO-3"),
        Text("Every weight of a 7B model; the model itself is divided among eight GPUs. Use it for a model that no single GPU can "
            "train; more is exchanged at every layer."),
    ),
    "multi-gpu-zero3-offload": (
        Text("Full training of a 7B model with ZeRO-3 and main memory"),
        Text("As with eight GPUs, on two: what they do not hold lies in the main memory, of which it takes well over a hundred "
            "gigabytes. Use it when there is no other way; it is the slowest. It does not go together with quantisation."),
    ),
}
