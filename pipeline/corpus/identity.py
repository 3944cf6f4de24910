"""Which row of which file: two columns in every part.

_file  "section=games/part-00.parquet"   relative to the root of the (first) corpus
_row   4711                              its position in that file, before any filter
"""

import pyarrow as pa

IDENTITY = (pa.field("_file", pa.string()), pa.field("_row", pa.int64()))
