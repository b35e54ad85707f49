"""Loading, heads, probes, vocabulary.

The first package of code/ that imports DeepSpeed and Transformers, so what they say at every start and nobody can act
on is silenced here, by its text: any other warning of theirs shows.
"""

import logging
import warnings

# The log of a run names its device.
logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())
# PEFT asks every model by the old name.
warnings.filterwarnings("ignore", category=FutureWarning, message="`is_gradient_checkpointing` is deprecated")
