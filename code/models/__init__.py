"""Models: their folders, loading, heads, packing, probes, sharding, the shared vocabulary.

Also silences two messages of DeepSpeed and PEFT that appear at every start and that users cannot act on. They are
matched by text, so that other warnings still show.
"""

import logging
import warnings

# The run's log names its device.
logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())
# PEFT asks every model for it by its old name.
warnings.filterwarnings("ignore", category=FutureWarning, message="`is_gradient_checkpointing` is deprecated")
