"""Small works for two ranks (`launches.Pair`)."""

import os
import time
from pathlib import Path

import torch


def ragged_rows() -> None:
    """Ranks with 3 and 7 rows: gathered, found again, summed, maximised. Fails if any value is wrong."""
    from accelerate import Accelerator

    from fire_opd_trl.rollouts.ranks import AcceleratorWorld

    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    world, rank = AcceleratorWorld(accelerator), accelerator.process_index
    rows, start = (3, 0) if rank == 0 else (7, 3)
    value_B = torch.arange(start, start + rows)
    assert world.gather(value_B).tolist() == list(range(10))
    assert world.gather(value_B.float().unsqueeze(1).expand(-1, 2)).tolist() == [[float(i)] * 2 for i in range(10)]
    assert world.gather(value_B > 4).tolist() == [i > 4 for i in range(10)]
    assert world.local_slice(rows) == slice(start, start + rows)
    assert world.sum(torch.tensor([rows, 1])).tolist() == [10, 2]
    assert world.max(torch.tensor([float(rank), -float(rank)])).tolist() == [1.0, 0.0]
    assert world.gather(torch.empty(0) if rank == 0 else torch.ones(2)).tolist() == [1.0, 1.0]
    assert world.gather(torch.empty(0, 3)).shape == (0, 3)
    accelerator.wait_for_everyone()
    accelerator.end_training()


def windows_without_a_token() -> None:
    """Every method on windows in which no token is usable on the first rank, on the second, and on both."""
    from accelerate import Accelerator

    from fire_opd_trl import METHODS, Context, distil
    from fire_opd_trl.rollouts.ranks import AcceleratorWorld
    from support.windows import emptied, rows_of, window

    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    world = AcceleratorWorld(accelerator)
    rollout, scores = window(rows=8)
    mine = slice(4 * world.rank, 4 * world.rank + 4)
    for gone in (range(4), range(4, 8), range(8)):
        rows = rows_of(emptied(rollout, list(gone)), scores, mine)
        for name, recipe in METHODS.items():
            for progress in (0.0, 0.9):  # reopold reads the entropies in the second phase alone
                signal = distil(*rows, recipe(), Context(world, progress=progress))
                assert signal.metrics["empty"] == len(gone), name
                weights = [v for v in (signal.weight_BT, signal.advantage_BT, signal.divergence_BT) if v is not None]
                assert all(value.isfinite().all() for value in weights), name
                alive = len(gone) < 8 and world.rank == int(0 in gone)
                assert alive or not any(value.any() for value in weights), name
    accelerator.wait_for_everyone()
    accelerator.end_training()


def refusals_of_one_rank() -> None:
    """A row of one rank is too long, cannot be rendered, breaks the reward or the rollout: both ranks do the same."""
    import tempfile

    from accelerate.utils import gather_object
    from datasets import Dataset

    from support.inspections import asked, with_template
    from support.worker import built, frozen_rows, streamed

    def stopped(sentence: str, trainer, run) -> None:
        try:
            run(trainer)
        except Exception as error:
            said = str(error)
        else:
            said = "nothing was refused"
        everyone = gather_object([said])  # a rank that still waits never comes here
        assert sum(sentence in said for said in everyone) >= 1, everyone
        assert all(sentence in said or "A row of another rank is wrong" in said for said in everyone), everyone

    case = {"batch": 2, "accumulation": 1, "max_steps": 2, "holes": False}
    with tempfile.TemporaryDirectory() as folder:
        long = built({**case, "stream": [20, 12]}, folder)
        stopped("row 1: the prompt of teacher 'teacher' has 128 tokens", long, lambda trainer: trainer.train())

        short = built({**case, "rows": 3, "stream": [2, 1], "config": {"overlong_prompts": "drop"}}, folder)
        stopped("fewer than the 4 prompts of a window, beside 2 rows", short, lambda trainer: trainer.train())

        late = streamed([{"prompt": text} for text in frozen_rows(32, False)][:8], [5, 3])
        drops = built({**case, "config": {"overlong_prompts": "drop"}}, folder, eval_dataset=late)
        assert drops.evaluate()["eval_fire/rows"] == 2 * drops.args.per_device_eval_batch_size
        assert drops.checked.left_out == {"eval_dataset": 2}

        template = "{% if messages[0]['content'] == '7=' %}{{ raise_exception('no sevens') }}{% endif %}1="
        tokenizer = with_template()
        rows = [{"prompt": asked(f"{number}=")} for number in range(4)]
        chats = {"train_dataset": Dataset.from_list(rows), "processing_class": tokenizer}
        chat = built({**case, "sample": True, "config": {"teacher_chat_template": template}}, folder, **chats)
        late = Dataset.from_list([{"prompt": asked(text)} for text in ("3=", "7=")])  # nobody has looked at these
        stopped("no sevens", chat, lambda trainer: trainer.evaluate(late))

        def picky(completion_ids, **_):
            if os.environ["RANK"] == "1":
                raise KeyError("a reward without its column")
            return [0.0] * len(completion_ids)

        stopped("a reward without its column", built(case, folder, reward_funcs=[picky]), lambda t: t.train())

        def engine(prompts, _):
            return {} if os.environ["RANK"] == "1" else {"completion_ids": [[1]] * len(prompts)}

        stopped("completion_ids", built(case, folder, rollout_func=engine), lambda t: t.train())


def checked_rows(folder: str) -> None:
    """Check a dataset that is read by a pool; write how many rows this rank measured, and the longest it heard of."""
    import datasets
    from accelerate import PartialState

    from fire_opd_trl.preflight import dataset

    rank, measure = os.environ["RANK"], dataset.measure
    PartialState(cpu=True)

    def counted(batch, **arguments):
        with open(f"{folder}/measured{rank}", "a") as file:
            file.write("." * len(batch["prompt"]))
        return measure(batch, **arguments)

    datasets.config.HF_DATASETS_CACHE = Path(folder) / "cache"
    dataset.POOL_ROWS, dataset.ROWS_OF_A_PROCESS, dataset.measure = 20, 15, counted
    rows = datasets.Dataset.from_list([{"prompt": "1" * (1 + row % 7)} for row in range(30)])
    reader = dataset.Reader(lambda rows: [[1] * len(row["prompt"]) for row in rows], None)
    teachers, columns = {"teacher": dataset.Reader(dataset.no_ids, None)}, ("teacher_id", "teacher_prompt")
    _, facts = dataset.check_dataset(
        rows, "rows", student=reader, teachers=teachers, overlong="error", columns=columns
    )
    done = Path(f"{folder}/measured{rank}")
    count = len(done.read_text()) if done.exists() else 0
    Path(f"{folder}/rank{rank}").write_text(f"{count} rows measured, {facts.longest}")


def leave_a_mark(path: str) -> None:
    """Write which process does this work for which rank, and where it meets the other."""
    Path(f"{path}{os.environ['RANK']}").write_text(f"{os.getpid()} {os.getpgid(0)} {os.environ['MASTER_PORT']}")


def fail_on_the_second_rank(path: str, sentence: str) -> None:
    """The first rank waits for the second, which will not come."""
    leave_a_mark(path)
    if os.environ["RANK"] == "1":
        while not Path(f"{path}0").exists():
            time.sleep(0.02)
        raise ValueError(sentence)
    time.sleep(600)


def never_end(path: str) -> None:
    leave_a_mark(path)
    time.sleep(600)
