"""A class on one machine: a workspace for each student, one fair queue, one wall for the teacher."""
