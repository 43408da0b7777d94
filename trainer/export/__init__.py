"""The serving folder: what transformers, sentence-transformers and ONNX servers load, checked before it is kept.

Imports inside run down, like the package's own:

    folder                              the standard layout, its check, and which formats are kept
    card  graph                         the model card; the ONNX graph
    parity                              differences to the trained model's scores
    odd_pairs  readers                  texts that are often read wrongly; other libraries, which stand alone
    hub                                 the upload to the Hugging Face Hub
"""

from typing import TYPE_CHECKING

from trainer.lazy import face

if TYPE_CHECKING:
    from trainer.export.folder import export as export
    from trainer.export.hub import files_to_push as files_to_push
    from trainer.export.hub import push as push
    from trainer.export.parity import Parity as Parity

__getattr__ = face(__name__)
