"""The launch scripts, as far as they run without the machines they are for."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
import yaml

from tests.training.conftest import REPOSITORY, environment, tiny_words

LAUNCH = REPOSITORY / "launch"
RESTART = LAUNCH / "restart.sh"

__all__ = ["environment"]  # the fixture

# Ends with the exit codes in ./codes, one a start, and leaves a checkpoint where the code has a + behind it.
COMMAND = """
code=$(head -n 1 codes); sed -i 1d codes; echo start >> starts
case $code in *+) mkdir -p "checkpoints/$(wc -l < starts)" ;; esac
exit "${code%+}"
"""


# Tests may run in the background or under nohup, with signals that are ignored.
AS_IN_A_TERMINAL = (
    "import os, signal, sys; [signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGHUP)]; "
    "os.execv(sys.argv[1], sys.argv[1:])"
)


def call(command: list[str], folder: pathlib.Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, env=os.environ | variables, capture_output=True, text=True, timeout=60, check=False
    )


def executable(path: pathlib.Path, body: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{body}")
    path.chmod(0o755)


def restart(folder: pathlib.Path, *command: str) -> subprocess.Popen[bytes]:
    """restart.sh around a command that is running: it has made the file `ready`."""
    words = [sys.executable, "-c", AS_IN_A_TERMINAL, str(RESTART), ".", *command]
    process = subprocess.Popen(words, cwd=folder, start_new_session=True)
    deadline = time.monotonic() + 30
    while not (folder / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    return process


@pytest.mark.parametrize("script", sorted(LAUNCH.glob("*.sh")), ids=lambda path: path.name)
def test_scripts_are_bash_and_say_what_was_run(script: pathlib.Path) -> None:
    checked = call(["bash", "-n", str(script)], REPOSITORY)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert script.name in (REPOSITORY / "docs/launch.md").read_text()
    assert "Not run by us" in script.read_text() or script == RESTART


def test_jobset_starts_all_hosts_again_but_for_errors_of_the_run() -> None:
    job = yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())
    slices = job["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert slices["parallelism"] == slices["completions"]
    [rule] = slices["podFailurePolicy"]["rules"]
    assert (rule["action"], rule["onExitCodes"]["values"]) == ("FailJob", [1, 2])
    assert job["spec"]["failurePolicy"]["rules"][0]["action"] == "FailJobSet"
    pod = slices["template"]["spec"]
    assert rule["onExitCodes"]["containerName"] == pod["containers"][0]["name"]
    mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    [shared_memory] = [volume for volume in pod["volumes"] if volume["name"] == mounts["/dev/shm"]]
    assert shared_memory["emptyDir"] == {"medium": "Memory"}


@pytest.mark.parametrize(
    ("codes", "last", "starts"),
    [
        pytest.param("143+ 143+ 0", 0, 3, id="preempted twice"),
        pytest.param("1", 1, 1, id="error"),
        pytest.param("143+ 2", 2, 2, id="bad input"),
        pytest.param("130", 130, 1, id="ctrl-c"),
        pytest.param("143 143+ 143 0", 0, 4, id="progress starts the count anew"),
        pytest.param("143+ 143 143 0", 143, 3, id="no progress"),
        pytest.param("75 143+ 75 0", 0, 4, id="try again"),
        pytest.param("143+ 143 75 0", 75, 3, id="no progress, the last to be tried again"),
        pytest.param("134", 134, 1, id="aborted"),
    ],
)
def test_restarts_while_preempted(tmp_path: pathlib.Path, codes: str, last: int, starts: int) -> None:
    (tmp_path / "codes").write_text("\n".join(codes.split()) + "\n")
    done = call([str(RESTART), "-n2", "-d0", ".", "bash", "-c", COMMAND], tmp_path)
    assert done.returncode == last, done.stderr
    assert len((tmp_path / "starts").read_text().splitlines()) == starts
    assert ("without a new checkpoint" in done.stderr) == (last in (143, 75))


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGHUP], ids=["SIGTERM", "the terminal is closed"])
def test_a_signal_to_the_wrapper_goes_on_and_ends_it(tmp_path: pathlib.Path, sent: signal.Signals) -> None:
    body = "trap 'touch got; exit 143' TERM; touch ready; while :; do sleep 0.05; done"
    process = restart(tmp_path, "bash", "-c", body)
    process.send_signal(sent)
    assert process.wait(timeout=30) == 143
    assert (tmp_path / "got").exists()


def test_ctrl_c_in_a_terminal_reaches_the_command_once(tmp_path: pathlib.Path) -> None:
    # A second one would end the run without saving.
    body = (
        "import pathlib, signal, sys, time; got = []; signal.signal(signal.SIGINT, lambda *_: got.append(1)); "
        "pathlib.Path('ready').touch(); deadline = time.monotonic() + 30\n"
        "while not got and time.monotonic() < deadline: time.sleep(0.01)\n"
        "time.sleep(0.5); sys.exit(130 if len(got) == 1 else 1)"
    )
    process = restart(tmp_path, sys.executable, "-c", body)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does
    assert process.wait(timeout=60) == 130


def test_the_exit_code_of_the_command_counts_after_a_signal(tmp_path: pathlib.Path) -> None:
    body = "trap 'exit 1' TERM; touch ready; while :; do sleep 0.01; done"
    process = restart(tmp_path, "bash", "-c", body)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 1


def test_restart_waits_longer_for_what_has_to_pass(tmp_path: pathlib.Path) -> None:
    executable(tmp_path / "bin/sleep", 'echo "$1" >> slept\n')
    (tmp_path / "codes").write_text("143\n75\n0\n")
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    done = call([str(RESTART), "-d", "10", ".", "bash", "-c", COMMAND], tmp_path, PATH=path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "slept").read_text().split() == ["10", "60"]


@pytest.mark.parametrize("words", [["only-a-workdir"], ["-n", "many", ".", "true"]])
def test_restart_says_how_it_is_used(tmp_path: pathlib.Path, words: list[str]) -> None:
    done = call([str(RESTART), *words], tmp_path)
    assert done.returncode == 2
    assert "launch/restart.sh [-n TRIES]" in done.stderr
    assert "six times as long after 75" in done.stderr
    assert done.stderr.endswith("no new start after it.\n")


@pytest.mark.parametrize(
    ("code", "restarts", "requeued"),
    [(0, 0, False), (1, 0, False), (2, 0, False), (253, 0, False), (143, 100, False), (75, 100, False)]
    + [(code, 0, True) for code in (143, 75, 134, 137)],
)
def test_slurm_requeues_what_was_preempted_or_lost(
    tmp_path: pathlib.Path, code: int, restarts: int, requeued: bool
) -> None:
    executable(tmp_path / "bin/srun", f'echo "$@" > srun.log\nexit {code}\n')
    done = slurm(tmp_path, SLURM_RESTART_COUNT=str(restarts), SLURM_CPUS_PER_TASK="12")
    assert done.returncode == code
    words = (tmp_path / "srun.log").read_text()
    assert words.endswith("main.py --config c.py\n")
    assert "--cpus-per-task=12 " in words
    assert (tmp_path / "scontrol.log").exists() == requeued
    if requeued:
        assert (tmp_path / "scontrol.log").read_text() == "requeue 42\n"


def test_slurm_without_a_number_of_cpus(tmp_path: pathlib.Path) -> None:
    executable(tmp_path / "bin/srun", 'printf "%s\\n" "$@" > srun.log\n')
    done = slurm(tmp_path, SLURM_JOB_NAME="rmt")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "srun.log").read_text().split() == (
        ["--kill-on-bad-exit=0", "--wait=180", ".venv/bin/python", "main.py", "--config", "c.py"]
    )


@pytest.mark.parametrize(("remaining", "requeued"), [(3600, False), (-1, True)], ids=["scancel", "time limit"])
def test_slurm_does_not_requeue_what_was_cancelled(tmp_path: pathlib.Path, remaining: int, requeued: bool) -> None:
    executable(tmp_path / "bin/srun", "kill -s TERM $PPID\nexit 143\n")
    done = slurm(tmp_path, SLURM_JOB_END_TIME=str(int(time.time()) + remaining))
    assert done.returncode == 143
    assert (tmp_path / "scontrol.log").exists() == requeued


def slurm(folder: pathlib.Path, **variables: str) -> subprocess.CompletedProcess[str]:
    executable(folder / "bin/scontrol", 'echo "$@" > scontrol.log\n')
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    script = str(LAUNCH / "slurm_gpu.sh")
    return call(["bash", script, "--config", "c.py"], folder, PATH=path, SLURM_JOB_ID="42", **variables)


# One queued resource, in ./state; `ssh` runs the command, in the folder of the node as home. A describe fails for
# another reason than that there is none where ./describe has "down" in its next line.
GCLOUD = """
echo "$*" >> calls
case "$*" in
  *"queued-resources create"*)
    [ ! -e state ] || { echo "ERROR: ALREADY_EXISTS: Resource exists" >&2; exit 1; }
    [ ! -e refused ] || { echo "ERROR: PERMISSION_DENIED: no" >&2; exit 1; }
    echo ACTIVE > state ;;
  *"queued-resources delete"*) rm state ;;
  *"queued-resources describe"*)
    answer=$(head -n 1 describe 2>/dev/null); [ ! -e describe ] || sed -i 1d describe
    [ "$answer" != down ] || { echo "ERROR: (gcloud) UNAVAILABLE: The service is down" >&2; exit 1; }
    cat state 2>/dev/null || { echo "ERROR: (gcloud) NOT_FOUND: Resource 'rmt' was not found." >&2; exit 1; } ;;
  *"tpu-vm ssh"*)
    [ "$(cat state)" = ACTIVE ] || exit 1
    export ROOT=$PWD HOME=$PWD/$5
    for word; do case $word in --command=*) cd && exec bash -c "${word#--command=}" ;; esac; done ;;
esac
"""

# What the hosts have: a session ends before this returns, so there is none when somebody asks.
TMUX = """
case $1 in
  has-session) exit 1 ;;
  new-session) echo "${!#}" >> ~/sessions; sh -c "${!#}"; exit 0 ;;
esac
"""

# Ends with the next exit code of ./codes, with a checkpoint where there is a + behind it; "gone" preempts the slice,
# "rebooted" ends the session too.
PYTHON = """
printf '%s\\0' "$@" > ~/arguments
grep SigIgn /proc/$$/status > ~/ignored
case $HOME in *-1) exit 143 ;; esac
cd "$ROOT"; echo start >> starts
code=$(head -n 1 codes); sed -i 1d codes
case $code in *+) mkdir -p "$WORKDIR/checkpoints/$(wc -l < starts)" ;; esac
case ${code%+} in
  gone) echo SUSPENDED > state ;;
  rebooted) kill -s KILL $PPID ;;
  *) exit "${code%+}" ;;
esac
"""


def tpu(
    folder: pathlib.Path, script: str, codes: str, *words: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    for name, body in {"gcloud": GCLOUD, "tmux": TMUX, "python3": "exit 0\n", "sudo": "exit 1\n"}.items():
        executable(folder / "bin" / name, body)
    for node in ("rmt", "rmt-0", "rmt-1"):
        (folder / node / "rmt/.venv").mkdir(parents=True, exist_ok=True)
        executable(folder / node / "rmt/.venv/bin/python", PYTHON)
    (folder / "codes").write_text("\n".join(codes.split()) + "\n")
    given = {"NAME": "rmt", "ZONE": "z", "ACCELERATOR": "v5litepod-16", "SOURCE": "s", "POLL": "0"}
    given |= {"WORKDIR": str(folder / "work dir"), "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    return call([str(LAUNCH / script), *(words or ("--config", "c.py"))], folder, **(given | variables))


def lines(path: pathlib.Path, words: str = "") -> list[str]:
    return [line for line in path.read_text().splitlines() if words in line]


@pytest.mark.parametrize("script", ["tpu_vm.sh", "tpu_pod.sh", "tpu_multislice.sh"])
def test_tpus_are_requested_again_after_a_preemption(tmp_path: pathlib.Path, script: str) -> None:
    done = tpu(tmp_path, script, "gone+ 143+ 0")
    assert done.returncode == 0, done.stderr
    created = lines(tmp_path / "calls", "queued-resources create")
    assert len(created) == 2
    assert all("--spot" in line for line in created)
    assert ("--node-count=2 --node-prefix=rmt" in created[0]) == (script == "tpu_multislice.sh")
    assert len(lines(tmp_path / "calls", "queued-resources delete rmt")) == 1
    assert len(lines(tmp_path / "starts")) == 3
    for host in ["rmt-0", "rmt-1"] if script == "tpu_multislice.sh" else ["rmt"]:
        assert len(lines(tmp_path / host / "sessions")) == 3
        assert "main.py --config c.py --workdir" in (tmp_path / host / "rmt.sh").read_text()
    assert "Ended with exit code 0. The TPUs still cost" in done.stdout


@pytest.mark.parametrize(
    ("codes", "last", "starts"),
    [
        pytest.param("75 134+ 137 0", 0, 4, id="lost processes"),
        pytest.param("rebooted 0", 0, 2, id="a host without its session"),
        pytest.param("gone+ gone+ gone+ gone+ 0", 0, 5, id="progress before each slice is gone"),
        pytest.param("143+ 75 143", 143, 3, id="no progress"),
        pytest.param("75 1", 1, 2, id="error"),
        pytest.param("143+ 2", 2, 2, id="bad input"),
        pytest.param("130", 130, 1, id="ctrl-c"),
    ],
)
def test_tpus_start_again_but_after_errors(tmp_path: pathlib.Path, codes: str, last: int, starts: int) -> None:
    done = tpu(tmp_path, "tpu_pod.sh", codes, TRIES="2")
    assert done.returncode == last, done.stderr
    assert len(lines(tmp_path / "starts")) == starts
    assert ("without a new checkpoint" in done.stderr) == (last == 143)
    assert "The TPUs still cost" in done.stdout + done.stderr


def test_words_get_to_the_hosts_as_they_are(tmp_path: pathlib.Path) -> None:
    words = [
        "--config.depths=(1, 1, 2, 1)",
        "it's",
        'a "b"',
        "$HOME",
        "`ls`",
        "*",
        "two\nlines",
        "a;b&c|d",
        "~",
        "ü",
        "",
    ]
    done = tpu(tmp_path, "tpu_pod.sh", "0", *words)
    assert done.returncode == 0, done.stderr
    arguments = (tmp_path / "rmt/arguments").read_text().split("\0")
    assert arguments == ["main.py", *words, "--workdir", str(tmp_path / "work dir"), ""]


def test_a_hang_up_does_not_end_the_command(tmp_path: pathlib.Path) -> None:
    tpu(tmp_path, "tpu_pod.sh", "0")
    assert int((tmp_path / "rmt/ignored").read_text().split()[1], 16) & 1 << signal.SIGHUP - 1


def test_a_failing_describe_is_no_preemption(tmp_path: pathlib.Path) -> None:
    (tmp_path / "state").write_text("ACTIVE\n")
    (tmp_path / "describe").write_text("down\n\ndown\n")  # at the start; there; while it runs
    done = tpu(tmp_path, "tpu_pod.sh", "143+ 0")
    assert done.returncode == 0, done.stderr
    assert not lines(tmp_path / "calls", "queued-resources create")
    assert not lines(tmp_path / "calls", "queued-resources delete")
    assert len(lines(tmp_path / "starts")) == 2
    assert done.stderr.count("UNAVAILABLE") == 2


def test_tpus_that_cannot_be_created_are_given_up(tmp_path: pathlib.Path) -> None:
    (tmp_path / "refused").touch()
    done = tpu(tmp_path, "tpu_pod.sh", "0", TRIES="3")
    assert done.returncode == 1
    assert len(lines(tmp_path / "calls", "queued-resources create")) == 3
    assert "could not be created 3 times" in done.stderr
    assert "PERMISSION_DENIED" in done.stderr


def test_an_installation_that_fails_is_given_up(tmp_path: pathlib.Path) -> None:
    done = tpu(tmp_path, "tpu_pod.sh", "0", TRIES="3", SETUP="echo try >> ~/tries; false")
    assert done.returncode == 1
    assert len(lines(tmp_path / "rmt/tries")) == 3
    assert "The installation failed 3 times in a row" in done.stderr
    assert "The TPUs still cost" in done.stderr


def test_what_runs_on_other_hosts_is_ended_before_a_new_start(tmp_path: pathlib.Path) -> None:
    asks = "tmux has-session -t =rmt"
    done = tpu(tmp_path, "tpu_multislice.sh", "75 0")
    assert done.returncode == 0, done.stderr
    ends = [line for line in lines(tmp_path / "calls", asks) if "kill" in line or "seq 60" in line]
    assert len(ends) == 2  # both slices, once


@pytest.mark.parametrize("file", ["launch/tpu_pod.sh", "docs/launch.md"])
def test_the_setup_that_is_shown_may_run_twice(tmp_path: pathlib.Path, file: str) -> None:
    text = (REPOSITORY / file).read_text().replace("\n# ", "\n")
    setup = text.split("SETUP='")[1].split("'")[0]
    executable(tmp_path / "bin/sudo", 'echo "$*" >> did\n[ "$1" != mount ] || touch mounted\n')
    executable(tmp_path / "bin/mountpoint", "[ -e mounted ]\n")
    for _ in range(2):
        done = call(["bash", "-c", setup], tmp_path, PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}")
        assert done.returncode == 0
    assert len(lines(tmp_path / "did", "mount ")) == 1


@pytest.mark.slow
def test_a_real_run_that_is_preempted_goes_on(
    tmp_path: pathlib.Path, digits_dir: str, environment: dict[str, str]
) -> None:
    workdir = tmp_path / "run"
    words = [*tiny_words(digits_dir), "--config.epochs=40", "--config.eval_every_epochs=40"]
    train = [sys.executable, "main.py", "--workdir", str(workdir), *words]
    wrapper = subprocess.Popen(
        [str(RESTART), "-d0", str(workdir), *train],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    metrics, deadline = workdir / "metrics.jsonl", time.monotonic() + 300
    while not (metrics.exists() and len(metrics.read_text().splitlines()) >= 3) and time.monotonic() < deadline:
        time.sleep(0.01)
    [child] = pathlib.Path(f"/proc/{wrapper.pid}/task/{wrapper.pid}/children").read_text().split()
    os.kill(int(child), signal.SIGTERM)
    out, _ = wrapper.communicate(timeout=600)
    assert wrapper.returncode == 0, out
    assert out.count("Training in") == 2
    assert "restart.sh: preempted at step" in out
    assert "resumes at step" in out
