import socket

import pytest

from cluster.connect import RayCluster
from cluster.placement import ClusterSettings
from pipeline.errors import PlacementError


def test_an_address_where_nobody_listens_is_told_at_once() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(PlacementError, match=rf"no Ray cluster answers at cluster.address '{address}': .*refused"):
            RayCluster(ClusterSettings(address=address)).workers(weights_bytes=0)


def test_an_object_store_larger_than_the_machine_is_refused_before_ray_starts() -> None:
    with pytest.raises(PlacementError, match=r"cluster.object_store_memory is 1048576.0 GiB, and this machine has"):
        RayCluster(ClusterSettings(object_store_memory=1 << 50)).workers(weights_bytes=0)
