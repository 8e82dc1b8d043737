"""
What vLLM's CPU backend lacks to be trained with, for these tests alone. vLLM loads it as a plugin in each of its
processes, because this folder is on PYTHONPATH and has an entry point.

* The CPU backend packs each linear layer's weight into another layout when the model is loaded, and computes with the
  copy: weights that training sends later would change nothing. Here it computes with the weight itself.
* A server takes weights by NCCL, which wants a GPU. Here the same engine and the same protocol carry them through a
  TCPStore on the loopback interface.
"""

import pickle
from types import SimpleNamespace

import torch


def register() -> None:
    """What vLLM calls."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
    from vllm.model_executor import parameter  # noqa: F401  (imported first by vLLM itself: avoids a circle)
    from vllm.model_executor.layers import linear, utils, vocab_parallel_embedding

    for module in (utils, linear, vocab_parallel_embedding):
        if hasattr(module, "dispatch_cpu_unquantized_gemm"):
            module.dispatch_cpu_unquantized_gemm = unpacked
    WeightTransferEngineFactory._registry["nccl"] = transfer_engine


def unpacked(layer: torch.nn.Module, remove_weight: bool) -> None:
    """In place of packing: the layer computes with whatever its weight is now."""
    layer.cpu_linear = torch.nn.functional.linear


def transfer_engine() -> type:
    """vLLM's NCCL engine with another transport."""
    from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

    class OverLoopback(NCCLWeightTransferEngine):
        def init_transfer_engine(self, init_info):
            assert (init_info.rank_offset, init_info.world_size) == (1, 2), init_info
            self.model_update_group = torch.distributed.TCPStore("127.0.0.1", init_info.master_port, is_master=False)
            self.updates = 0

        def receive_weights(self, update_info):
            arrived = pickle.loads(self.model_update_group.get(f"update {self.updates}"))
            self.updates += 1
            announced = list(
                zip(update_info.names, update_info.dtype_names, map(tuple, update_info.shapes), strict=True)
            )
            sent = [(name, str(value.dtype).removeprefix("torch."), tuple(value.shape)) for name, value in arrived]
            assert announced == sent, (announced, sent)
            self.model.load_weights(arrived)

        def update_weights(self, update_info):
            self.receive_weights(self.parse_update_info(update_info))  # no device to wait for

    return OverLoopback


def trainer_side(patch) -> None:
    """The trainer's half of the transport; `patch` is pytest's monkeypatch. The client itself stays TRL's."""
    from trl.generation import vllm_client

    original = vllm_client.VLLMClient.init_communicator

    def endpoint(init_info):
        port = init_info["master_port"]
        store = torch.distributed.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
        return SimpleNamespace(store=store, group=SimpleNamespace())  # the client closes `.group`

    def producer(iterator, group, src, post_iter_func):
        sent = [(name, value.detach().clone()) for name, value in iterator]
        group.store.set(f"update {producer.updates}", pickle.dumps(sent))
        producer.updates += 1

    producer.updates = 0
    patch.setattr(vllm_client, "get_ip", lambda: "127.0.0.1")
    patch.setattr(vllm_client, "open_trainer_endpoint", endpoint)
    patch.setattr(vllm_client, "packed_nccl_broadcast_producer", producer)
    patch.setattr(
        vllm_client.VLLMClient, "init_communicator", lambda self, device: original(self, torch.device("cuda"))
    )
