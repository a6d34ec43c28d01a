"""All peers, by the names that the command line takes; the others are compared with BASE."""

from __future__ import annotations

from loadtests.peers.base import Peer
from loadtests.peers.bentoml import BentoML
from loadtests.peers.ds_serve import DsServe
from loadtests.peers.litserve import LitServe
from loadtests.peers.mlserver import MLServer
from loadtests.peers.ray import RayServe
from loadtests.peers.triton import Triton

BASE = DsServe()
ALL: tuple[Peer, ...] = (BASE, Triton(), MLServer(), LitServe(), BentoML(), RayServe())
PEERS = {peer.key: peer for peer in ALL}
