"""Export of a model folder for transformers, sentence-transformers and ONNX servers, verified with these readers.

Imports inside run down, like the package's own:

    folder                              write the standard layout, verify it, and leave out formats that fail
    card                                the model card
    formats                             further formats, compared with the trained model
    loads                               which libraries and servers load the folder
    engines                             the rules of Elasticsearch and Vespa
    libraries                           the rules of transformers, sentence-transformers, Infinity and fastembed
    tei  vllm                           the rules of Text Embeddings Inference and of vLLM
    contents                            the folder's files, as parsers read them
    adapter                             the LoRA adapter, compared with the merged weights
    parity                              differences to the trained model's scores, by reader and precision
    odd_pairs  public  readers          texts that readers often differ on; the recipe for others; scores by libraries
    hub                                 the upload to the Hugging Face Hub
    signature                           the hash of a card, by which edits are seen
"""

from typing import TYPE_CHECKING

from trainer.lazy import face

if TYPE_CHECKING:
    from trainer.export.adapter import difference_to_merged as difference_to_merged
    from trainer.export.card import History as History
    from trainer.export.folder import export as export
    from trainer.export.formats import DevMetric as DevMetric
    from trainer.export.hub import files_to_push as files_to_push
    from trainer.export.hub import upload as upload
    from trainer.export.parity import Parity as Parity
    from trainer.export.public import base_of as base_of

__getattr__ = face(__name__)
