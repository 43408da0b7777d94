"""Models as ONNX graphs, in float32 and in int8, their gate, and ONNX Runtime as an engine on the CPU.

Imports inside run down, like the package's own:

    formats                             a model written in a format; the formats of a folder that passed their gate
    graph  quantize  gate               the graph; its products in int8; what a format must keep
    session  rounding                   ONNX Runtime; numbers as 8-bit integers

Names are imported on first use: the graph needs torch, and the rest ONNX and ONNX Runtime, which are optional.
"""

from typing import TYPE_CHECKING

from trainer.lazy import face

if TYPE_CHECKING:
    from trainer.inference.formats import EXACT as EXACT
    from trainer.inference.formats import FILES as FILES
    from trainer.inference.formats import FORMATS as FORMATS
    from trainer.inference.formats import Format as Format
    from trainer.inference.formats import passed as passed
    from trainer.inference.formats import record as record
    from trainer.inference.formats import remove as remove
    from trainer.inference.formats import size as size
    from trainer.inference.formats import write as write
    from trainer.inference.gate import FLOAT32_SHARES as FLOAT32_SHARES
    from trainer.inference.gate import Quality as Quality
    from trainer.inference.session import Session as Session

__getattr__ = face(__name__)
