"""Export of a model folder for transformers, sentence-transformers and ONNX servers, verified with these readers.

Imports inside run down, like the package's own:

    folder                              write the standard layout, verify it, and leave out formats that fail
    card                                the model card
    formats  adapter                    further formats and the LoRA adapter, compared with the trained model
    parity                              differences to the trained model's scores, by reader and precision
    odd_pairs  readers  vllm            texts that readers often differ on; scores by other libraries; vLLM's rules
    hub                                 the upload to the Hugging Face Hub
"""

from typing import TYPE_CHECKING

from trainer.lazy import face

if TYPE_CHECKING:
    from trainer.export.adapter import difference_to_merged as difference_to_merged
    from trainer.export.folder import export as export
    from trainer.export.formats import DevMetric as DevMetric
    from trainer.export.hub import files_to_push as files_to_push
    from trainer.export.hub import upload as upload
    from trainer.export.parity import Parity as Parity

__getattr__ = face(__name__)
