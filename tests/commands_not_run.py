"""Commands of the docs that tests/test_docs.py does not run, each with the reason."""

from typing import NamedTuple

from tests.commands_in_docs import DOCS, PAGES, commands_of


class NotRun(NamedTuple):
    """Why a command is not run here, and the test that runs the same thing small or by other means, if there is one."""

    why: str
    instead: str = ""


NANOGPT_PAGE = DOCS / "nanogpt.md"
NANOGPT = "tests/test_nanogpt_page.py"
BENCH = "tests/scripts/test_bench.py"
ON_SLURM = "tests/launch/test_slurm_cluster.py"
REPRODUCE = "tests/scripts/test_reproduce.py"
OPTIM_BENCH = f"{BENCH}::test_the_optimizer_benchmark_knows_state_floor_and_foreign_files"
NOT_RUN = {
    "pip install -e '.[train]'": NotRun("the package index; .ci/run does it in a fresh environment"),
    "pip install -e '.[search]'": NotRun("the package index; a part of .[dev]"),
    "pip install <checkout>": NotRun(
        "the package index",
        "tests/optim/test_installed.py::test_the_wheel_needs_torch_alone_and_the_extra_train_pins_it",
    ),
    **{
        f"python docs/recipes/{recipe}.py": NotRun(
            "it is run where the package alone is installed",
            "tests/optim/test_installed.py::test_the_recipes_lower_a_loss_with_the_frameworks_themselves",
        )
        for recipe in ("plain_torch", "hf_trainer", "lightning_module")
    },
    "python train.py search=optuna 'search.space.optim.lr={low: 1e-4, high: 1e-2}'": NotRun(
        "another with fewer trials is run"
    ),
    "pip install -e '.[dev]'": NotRun("the package index; .ci/run does it in a fresh environment"),
    "pip install -e '.[docs]'": NotRun("the package index; a part of .[dev]"),
    "mkdocs build --strict": NotRun(
        "a build", "tests/test_site.py::test_it_builds_strictly_and_its_pages_load_nothing_from_elsewhere"
    ),
    "pip install pre-commit": NotRun("the package index"),
    "pre-commit install": NotRun("it changes the checkout", "tests/test_docs.py::test_the_hooks_are_checks_of_make"),
    "make check": NotRun("it is the whole suite; .ci/run runs the same"),
    "ruff format --check": NotRun("a part of make check"),
    "ruff check": NotRun("a part of make check"),
    "pytest tests/test_golden.py": NotRun("it is in this suite"),
    "python tests/golden/record.py losses": NotRun(
        "it replaces golden files", "tests/test_golden.py::test_ten_steps_lose_what_they_did"
    ),
    "python tests/golden/record.py configs": NotRun(
        "it replaces golden files", "tests/test_golden.py::test_claims_are_configured_as_they_were"
    ),
    **{
        f"python train.py schedule=wsd {each}": NotRun(
            "needs a trunk", "tests/test_branch.py::test_a_branch_ends_bit_for_bit_like_the_run_that_it_replaces"
        )
        for each in (
            "max_steps=2000 run_dir=runs/trunk 'save_at=[400,800]'",
            "max_steps=500 start_from=runs/trunk@400",
            "max_steps=1000 start_from=runs/trunk@800",
            "start_from=runs/<name>@200",
        )
    },
    "torchrun --standalone --nproc_per_node=8 train.py parallel=ddp micro_batch=1": NotRun(
        "a longer form of it is run below",
        "tests/test_working_directory.py::test_train_py_trains_in_a_folder_with_files_of_our_packages_names",
    ),
    "python <checkout>/train.py": NotRun(
        "a form, not a command",
        "tests/test_working_directory.py::test_train_py_trains_in_a_folder_with_files_of_our_packages_names",
    ),
    **{
        f"python train.py data={each}": NotRun(
            "tokens of others", "tests/data/test_token_files.py::test_train_py_trains_on_them_as_first_typed"
        )
        for each in (
            "tokens data.source.train='data/openwebtext/train.bin' data.source.val='data/openwebtext/val.bin'",
            "tokens data.source.train='fineweb10B/*_train_*.bin' data.source.val='fineweb10B/*_val_*.bin'",
            "fineweb10b data.order=sequential",
        )
    },
    "python train.py data=mixture 'data.source.parts={hf-gpt2-1a2b3c4d: 0.7, files-gpt2-5e6f7a8b: 0.3}'": NotRun(
        "needs its parts", "tests/data/test_mixture.py::test_train_py_trains_on_a_mixture_as_first_typed"
    ),
    "python scripts/prepare_data.py data=hf data.source.path=roneneldan/TinyStories data.source.split=train": NotRun(
        "the network", "tests/data/test_huggingface.py::test_the_command_prepares_a_folder_as_first_typed"
    ),
    "python scripts/prepare_data.py data=hf data.source.path=my_set data.source.text=content": NotRun(
        "a folder of yours", "tests/data/test_huggingface.py::test_the_command_prepares_a_folder_as_first_typed"
    ),
    **{
        f"python scripts/evaluate.py run=runs/<name> {each}": NotRun(why, f"tests/scripts/test_evaluate.py::{test}")
        for each, why, test in (
            ("data='books/*.txt'", "texts of yours", "test_text_files_are_evaluated_on_all_of_them"),
            ("hellaswag=hellaswag_val.jsonl", "a download", "test_hellaswag_joins_the_run_and_the_comparison"),
            ("tasks=piqa export=<folder>", "downloads", "test_tasks_of_the_harness_join_the_run"),
        )
    },
    "pip install -e '.[eval]'": NotRun("the package index"),
    "python scripts/runs.py --serve": NotRun(
        "a server", "tests/scripts/test_runs.py::test_the_served_page_has_the_runs_and_their_losses"
    ),
    "python scripts/send_metrics.py 'runs/*' logging=wandb": NotRun(
        "an account", "tests/scripts/test_send_metrics.py::test_wandb_gets_rows_settings_and_the_same_id_every_time"
    ),
    **{
        f"python train.py model=gpt2_small data/tokenizer=gpt2 start_from={each}": NotRun(
            "weights of others", "tests/test_start.py::test_weights_of_nanogpt_and_of_hugging_face_begin_a_run"
        )
        for each in ("hf:<folder>", "nanogpt:<ckpt.pt>")
    },
    "python scripts/prepare_data.py data=hf data.source.path=<name>": NotRun(
        "a form, not a command", "tests/data/test_huggingface.py::test_the_command_prepares_a_folder_as_first_typed"
    ),
    "python train.py data=tokens data.source.train=<glob> data.source.val=<glob>": NotRun(
        "tokens of others", "tests/data/test_token_files.py::test_train_py_trains_on_them_as_first_typed"
    ),
    "python train.py data=mixture 'data.source.parts={<folder>: 3, <folder>: 1}'": NotRun(
        "needs its parts", "tests/data/test_mixture.py::test_train_py_trains_on_a_mixture_as_first_typed"
    ),
    **{
        command: NotRun("what nanoGPT and Sophia's code train", f"{NANOGPT}::test_its_runs_are_configurations_of_ours")
        for command in set(commands_of(NANOGPT_PAGE.read_text("utf-8")))
        - {each for page in PAGES if page != NANOGPT_PAGE for each in commands_of(page.read_text("utf-8"))}
    },
    **{
        command: NotRun("a step of a path", f"{NANOGPT}::test_the_six_steps_work_one_after_the_other")
        for command in (
            "python scripts/prepare_data.py data=files data.source.pattern=input.txt",
            "python train.py data=files data.source.pattern=input.txt run_dir=runs/mine",
            "python scripts/sample.py run=runs/mine prompt='ROMEO:'",
            "python train.py data=files data.source.pattern=input.txt run_dir=runs/mine max_steps=1000",
            "python train.py data=files data.source.pattern=input.txt start_from=runs/mine start=weights optim.lr=1e-4",
            "python scripts/export.py run=runs/mine to=hf out=mine-hf",
        )
    },
    "tensorboard --logdir runs": NotRun(
        "a server", "tests/test_train.py::test_tensorboard_has_the_rows_of_metrics_jsonl_also_after_a_kill"
    ),
    "torchrun --nnodes=4 --nproc_per_node=8 --rdzv_backend=c10d --rdzv_endpoint=<host>:29400 --max-restarts=3 "
    "train.py parallel=fsdp2 model=gpt2_large global_batch=480 micro_batch=3": NotRun("several machines"),
    **{
        f"sbatch --job-name=gpt2-soap launch/{template}.sbatch data=openwebtext model=gpt2_small optim=soap "
        "global_batch=480 micro_batch=10": NotRun("SLURM", f"{ON_SLURM}::test_the_templates_run_as_they_stand")
        for template in ("one_node", "slurm")
    },
    "python train.py launch=slurm launch.ranks=16 launch.nodes=2 parallel=fsdp2 model=gpt2_large data=openwebtext "
    "global_batch=480 micro_batch=3": NotRun(
        "SLURM", f"{ON_SLURM}::test_ranks_on_two_nodes_meet_and_end_as_under_torchrun"
    ),
    "python train.py -m launch=slurm launch.at_once=8 optim=adamw,lion 'seed=range(1,9)'": NotRun(
        "SLURM", f"{ON_SLURM}::test_runs_go_through_one_array_over_both_nodes"
    ),
    "python train.py -m optim.lr=1e-3,2e-3 launch=slurm": NotRun(
        "SLURM", f"{ON_SLURM}::test_runs_go_through_one_array_over_both_nodes"
    ),
    "python scripts/reproduce.py claim=sophia_2x scale=small launch=slurm launch.ranks=8 launch.at_once=4 "
    "parallel=ddp": NotRun("SLURM, and hours of eight GPUs"),
    "pip install -e '.[slurm]'": NotRun("the package index; a part of .[dev]"),
    **{
        f"bash scripts/gpu.sh{part}": NotRun(
            "a GPU", "tests/scripts/test_gpu.py::test_the_commands_are_ones_that_the_programs_take"
        )
        for part in ("", " 1")
    },
    "python scripts/bench.py page benchmarks": NotRun(
        "it changes the checkout", "tests/scripts/test_gpu.py::test_the_page_has_what_was_measured_between_its_marks"
    ),
    "python scripts/reproduce.py claim=sophia_2x scale=nano --dry-run": NotRun(
        "it measures steps for seconds",
        "tests/reproduce/test_command.py::test_a_dry_run_prints_the_checks_that_are_known_before_and_leaves_nothing_on_disk",
    ),
    "python train.py <overrides of the run> optim.lr=6e-3 run_dir=reproductions/atlas/nano-1a2b3c4d/mine": NotRun(
        "a form, not a command"
    ),
    "python scripts/reproduce.py claim=sophia_2x scale=nano": NotRun(
        "an hour", "tests/reproduce/test_reproduction.py::test_a_sweep_of_real_runs_ends_in_a_report"
    ),
    "python scripts/reproduce.py claim=lion_comparable scale=nano runs=published": NotRun(
        "an hour", "tests/reproduce/test_published.py::test_published_runs_give_the_results_that_their_own_atlas_gives"
    ),
    "python scripts/reproduce.py claim=sophia_2x scale=small ranks=8 parallel=ddp": NotRun("days on eight GPUs"),
    "python scripts/reproduce.py claim=all scale=nano": NotRun(
        "hours", f"{REPRODUCE}::test_the_readme_beside_the_ledger_shows_its_verdicts"
    ),
    "python scripts/bench.py train --model nano --batch 8 --peer <nanoGPT checkout> --rounds 9": NotRun(
        "minutes, another project's code", f"{BENCH}::test_the_training_benchmark_writes_its_figures"
    ),
    "python scripts/bench.py train --model gpt2_small --peer <nanoGPT checkout> --rounds 9": NotRun(
        "minutes, another project's code", f"{BENCH}::test_the_training_benchmark_writes_its_figures"
    ),
    "python scripts/bench.py optim --optim adamw_ours sophiag lion signum sgd adafactor <authors' sophia.py>:SophiaG "
    "<a file with torch.optim.Adafactor>:Loop ... --steps 5 --rounds 9": NotRun(
        "minutes, other projects' code", OPTIM_BENCH
    ),
    "python scripts/bench.py optim --optim lion <a peer's file>:<class> --rounds 6 --steps 2": NotRun(
        "minutes, other projects' code", OPTIM_BENCH
    ),
    "python scripts/bench.py optim --parallel 1 2 4 --optim soap adamw_ours --model micro --steps 10 "
    "--rounds 2": NotRun("minutes", f"{BENCH}::test_the_optimizer_benchmark_compares_ranks_with_one_process"),
    "python scripts/bench.py memory": NotRun("half a minute", f"{BENCH}::test_the_table_of_state_holds_every_config"),
    "python scripts/bench.py data --megabytes 100 --rounds 3 --batches 100": NotRun(
        "a minute", "tests/scripts/test_bench_commands.py::test_both_ways_of_preparing_make_as_many_tokens"
    ),
    "python scripts/bench.py startup": NotRun(
        "two minutes",
        "tests/scripts/test_bench_commands.py::test_startup_reports_every_command_and_compares_first_steps",
    ),
    "python scripts/bench.py optim --optim adamw_ours sgd <a file with torch.optim.SGD>:SGD --steps 5 "
    "--rounds 7": NotRun("minutes", OPTIM_BENCH),
    "OMP_NUM_THREADS=1 python scripts/bench.py tensors": NotRun(
        "half a minute", f"{BENCH}::test_small_tensors_are_measured_beside_torchs_foreach"
    ),
    "python scripts/bench.py checkpoint --model gpt2_small": NotRun(
        "gigabytes", f"{BENCH}::test_the_checkpoint_benchmark_compares_saves_and_cleans_up"
    ),
}
