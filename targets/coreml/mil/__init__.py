"""Core ML's model language (MIL), evaluated in torch from a saved package.

An independent reading of what the operators are documented to compute
(https://apple.github.io/coremltools/source/coremltools.converters.mil.mil.ops.defs.html): it shares
no code with coremltools beyond the parser of the file. A float16 value is computed in float32 and
then rounded; Apple's hardware may round more often.
"""

from advisor.targets.coreml.mil.constants import read_weight
from advisor.targets.coreml.mil.evaluate import Evaluator, dtype_of
from advisor.targets.coreml.mil.registry import OPERATORS

__all__ = ["OPERATORS", "Evaluator", "dtype_of", "read_weight"]
