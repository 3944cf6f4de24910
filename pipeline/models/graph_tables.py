"""Tables of an OpenVINO graph, rows of which are taken by number: in float16, where bfloat16 is what computes.

    halve_tables(model) -> 1        # in place, before it is compiled: the words of a vocabulary

OpenVINO leaves a table as it comes, in float32, and takes from it what it computes in bfloat16: three digits of seven.
Float16 has four. Half of an actor's weights of MiniLM are its table: 23 MB fewer.
"""

from typing import Any

import numpy as np

_WORTH_BYTES = 1 << 20
_LARGEST = float(np.finfo(np.float16).max)


def halve_tables(model: Any) -> int:
    """Have the large tables of an `openvino.Model` in float16; one with a number that is too large for it stays."""
    from openvino import Type, opset13

    halved = 0
    for node in model.get_ordered_ops():
        table = node.input_value(0).get_node() if node.get_type_name() == "Gather" else None
        if table is None or table.get_type_name() != "Constant" or table.get_element_type() != Type.f32:
            continue
        values = np.asarray(table.get_data())
        if values.nbytes < _WORTH_BYTES or not -_LARGEST <= values.min() <= values.max() <= _LARGEST:
            continue
        half = opset13.constant(values.astype(np.float16), shared_memory=True)
        node.input(0).replace_source_output(opset13.convert(half, np.float32).output(0))
        halved += 1
    model.validate_nodes_and_infer_types()
    return halved
