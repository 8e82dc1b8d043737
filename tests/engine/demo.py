"""
`fire-opd demo` with vLLM on a CPU: the demo itself, where vLLM keeps its weights (see `plugin/vllm_on_cpu.py`).

    PYTHONPATH=tests/engine/plugin python tests/engine/demo.py --rollouts vllm --seed 0
"""

from fire_opd_trl.demo.run import main


if __name__ == "__main__":
    raise SystemExit(main())
