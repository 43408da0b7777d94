"""Export of a model folder for transformers, sentence-transformers and ONNX servers, verified with these readers.

Imports inside run down, like the package's own:

    folder                              write the standard layout, verify it, and leave out formats that fail
    card  graph                         the model card; the ONNX graph
    parity                              differences to the trained model's scores, by reader and precision
    odd_pairs  readers                  texts that readers often differ on; scores by other libraries
    hub                                 the upload to the Hugging Face Hub
"""

from typing import TYPE_CHECKING

from trainer.lazy import face

if TYPE_CHECKING:
    from trainer.export.folder import export as export
    from trainer.export.hub import files_to_push as files_to_push
    from trainer.export.hub import upload as upload
    from trainer.export.parity import Parity as Parity

__getattr__ = face(__name__)
