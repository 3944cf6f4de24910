"""Tables of an OpenVINO graph, rows of which are taken by number: in float16, where bfloat16 is what computes.

    halve_tables(model) -> 1        # in place, before it is compiled: the words of a vocabulary

OpenVINO leaves a table as it comes, in float32, and takes from it what it computes in bfloat16: three digits of seven.
Float16 has four. Half of an actor's weights of MiniLM are its table: 23 MB fewer.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

_WORTH_BYTES = 1 << 20
_LARGEST = float(np.finfo(np.float16).max)
_SMALL = 1e-4
"""Below two thirds of it float16 has fewer and fewer digits."""

_LOOKED_AT = 100_000


def halve_tables(model: Any) -> int:
    """Have the large tables of an `openvino.Model` in float16, and tell how many they are.

    A table stays as it is with a number that is too large for it, or mostly with such as are too small, and where
    more is done with it than taking rows.
    """
    from openvino import Type, opset13

    halved = 0
    for table in model.get_ordered_ops():
        if table.get_type_name() != "Constant" or table.get_element_type() != Type.f32:
            continue
        readers = list(table.output(0).get_target_inputs())
        taken = [each for each in readers if each.get_node().get_type_name() == "Gather" and each.get_index() == 0]
        values = np.asarray(table.get_data())
        if not taken or len(taken) < len(readers) or values.nbytes < _WORTH_BYTES or not _fit(values):
            continue
        half = opset13.convert(opset13.constant(values.astype(np.float16), shared_memory=True), np.float32)
        for each in taken:
            each.replace_source_output(half.output(0))
        halved += 1
    model.validate_nodes_and_infer_types()
    return halved


def _fit(values: npt.NDArray[np.float32]) -> bool:
    some = values.reshape(-1)[:: max(1, values.size // _LOOKED_AT)]
    return bool(-_LARGEST <= values.min() <= values.max() <= _LARGEST and np.abs(some).mean() >= _SMALL)
