"""Export of a model folder for transformers, sentence-transformers and ONNX servers, verified with these readers.

Imports inside run down, like the package's own:

    folder                              write the standard layout, verify it, and leave out formats that fail
    card  graph                         the model card; the ONNX graph
    parity                              differences to the trained model's scores, by reader and precision
    odd_pairs  readers                  texts that readers often differ on; scores by other libraries
    hub                                 the upload to the Hugging Face Hub
"""

from trainer.export.folder import export
from trainer.export.parity import Parity

__all__ = ["Parity", "export"]
