"""Names of the session keys, each once. Widgets of a page use `<page>_<thing>`; these are shared between pages.

Nothing here is the truth: that lies in the workspace. A lost session costs a user the place on the page, no work.
"""

from __future__ import annotations

LANGUAGE = "language"
VISITOR = "visitor"  # who looks at the page: role and name; another one gets an empty session
RUN = "run"  # also a query parameter: the run a page is about
DATASET = "dataset"
RECIPE = "recipe"

CHAT_ADDRESS = "chat_address"  # the models in the address when it was last read
CHAT_EXCHANGES = "chat_exchanges"
CHAT_LIVE = "chat_live"  # the question being answered: (Exchange, Answers)
CHAT_NOTICE = "chat_notice"
CHAT_UNSAVED = "chat_unsaved"  # why the last exchange could not be kept on disk
CHAT_TALK = "chat_talk"  # also a query parameter: the conversation, as it lies on disk
