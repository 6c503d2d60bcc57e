"""From protobuf to the frozen types of `meshsdk.model`: one module per resource type.

`DECODERS` is in the order of the first requests of a stream. Importing this package imports the
protobuf modules (about 20 ms); nothing else of meshsdk sees protobuf of these types.
"""

from __future__ import annotations

from typing import Final

from meshsdk.xds.decode import cds, eds, lds, rds
from meshsdk.xds.resources import Decoder

DECODERS: Final[dict[str, Decoder]] = {
    decoder.type_url: decoder for decoder in (lds.DECODER, rds.DECODER, cds.DECODER, eds.DECODER)
}
