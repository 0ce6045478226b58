"""A Python that has imported the packages before it is asked for: a stage starts in 0.1 s instead of 4.

    python tests/warm.py FOLDER     make FOLDER/bin/python, and serve those who call it until killed

Half of what the tests took was the imports of torch, transformers and Gymnasium, a hundred and fifty times
over. FOLDER/bin/python is for make (`VENV=FOLDER`) and for the fixture `kit` in place of the environment's
own: a stage that it is asked to run is run by a fork of this server, in the caller's folder, with the
caller's environment, streams and signals; it ends with its caller, and the caller with its exit code. The
kit's own modules are not here: they come from the folder where the stage lies. All else (kit.plan,
kit.watch, --video, variables that packages read as they are imported) is done by the true Python. Memory
and CPU seconds that a caller measures are not the stage's.
"""

import json
import os
import resource
import signal
import socket
import sys

STAGES = {"prepare_data.py", "train.py", "baselines.py", "evaluate.py", "plot.py", "export.py"}
ROOMS = ("paper.", "mini.", "benchmark")
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


# --- bin/python ----------------------------------------------------------------------------------

def call(folder, real):
    """What bin/python does: ask the server, or be Python."""
    argv = sys.argv[1:]
    heavy = argv and (os.path.basename(argv[0]) in STAGES
                      or argv[0] == "-m" and len(argv) > 1 and argv[1].startswith(ROOMS))
    own = os.environ.get("OMP_NUM_THREADS") != "1" or "HF_HUB_CACHE" in os.environ
    if not heavy or own or "--video" in argv:
        os.execv(real, [f"{folder}/bin/python", *argv])  # its name says where its packages are
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(f"{folder}/socket")
        theirs, _ = os.pipe()  # the other end is closed when this process ends, however that comes
        request = json.dumps({
            "argv": argv, "python": f"{folder}/bin/python", "cwd": os.getcwd(),
            "environment": dict(os.environ),
            "ignored": [n for n in PASSED_ON if signal.getsignal(n) == signal.SIG_IGN],
            "largest_file": resource.getrlimit(resource.RLIMIT_FSIZE)}).encode()
        signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
        socket.send_fds(server, [len(request).to_bytes(4, "big")], [0, 1, 2, theirs])
        server.sendall(request)
        os.close(theirs)
        process = int.from_bytes(server.recv(4), "big")
        for number in PASSED_ON:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, lambda number, _: pass_on(process, number))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
        status = int.from_bytes(server.recv(4), "big")
    if os.WIFSIGNALED(status):
        signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.WEXITSTATUS(status))


def pass_on(process, number):
    try:
        os.kill(process, number)
    except ProcessLookupError:  # a second signal, when the first has ended it and its status is on the way
        pass


# --- the server ----------------------------------------------------------------------------------

def serve(folder):
    """Fork for each call, for ever."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{folder}/socket")
        listening.listen(64)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those below
        while True:
            caller, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                look_after(caller)
            caller.close()


def look_after(caller):
    """Start what a caller asks for, and tell how it ended."""
    length, streams, _, _ = socket.recv_fds(caller, 4, 4)
    request = b""
    while len(request) < int.from_bytes(length, "big"):
        request += caller.recv(1 << 16)
    process = os.fork()
    if process == 0:
        caller.close()
        run(json.loads(request), streams)
    for stream in streams:
        os.close(stream)
    try:
        caller.sendall(process.to_bytes(4, "big"))
        caller.sendall(os.waitpid(process, 0)[1].to_bytes(4, "big"))
    finally:
        os._exit(0)


def run(request, streams):
    """Be the process that was asked for: end as it does."""
    import fcntl
    import runpy
    import traceback

    for number, stream in enumerate(streams[:3]):
        os.dup2(stream, number)
    fcntl.fcntl(streams[3], fcntl.F_SETOWN, os.getpid())  # SIGIO ends it when the caller is gone
    fcntl.fcntl(streams[3], fcntl.F_SETFL, fcntl.fcntl(streams[3], fcntl.F_GETFL) | os.O_ASYNC)
    for number in PASSED_ON:
        signal.signal(number, signal.SIG_IGN if number in request["ignored"] else signal.SIG_DFL)
    if signal.SIGINT not in request["ignored"]:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    resource.setrlimit(resource.RLIMIT_FSIZE, request["largest_file"])
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    # after a fork PyTorch makes its threads anew when they are first asked for, and asserts where two of
    # transformers' loading threads do that at once ("Invalid thread pool!"): here there is one thread yet
    sys.modules["torch"].set_num_threads(1)
    sys.executable = request["python"]  # for the processes that a stage starts
    module = request["argv"][0] == "-m"
    sys.argv = request["argv"][module:]
    sys.path[0] = request["cwd"] if module else os.path.dirname(os.path.abspath(sys.argv[0]))
    code = 0
    try:
        if module:
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if not isinstance(end.code, int | None):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def warm_up():
    """Import what the stages import; nothing that is the kit's."""
    import ale_py  # noqa: F401
    import cv2  # noqa: F401
    import gymnasium_robotics  # noqa: F401
    import h5py  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import scipy.optimize  # noqa: F401
    import scipy.stats  # noqa: F401
    import torch
    import transformers
    from transformers import AutoConfig, AutoTokenizer, GPT2LMHeadModel  # noqa: F401

    torch.set_num_threads(1)
    transformers.AutoModelForCausalLM.from_config(transformers.GPT2Config(n_embd=8, n_layer=1, n_head=1))


def make_environment(folder):
    """FOLDER/bin/python, for which FOLDER is the environment that this Python is of."""
    venv = os.path.dirname(os.path.dirname(sys.executable))
    os.makedirs(f"{folder}/bin")
    os.symlink(f"{venv}/lib", f"{folder}/lib")
    with open(f"{venv}/pyvenv.cfg") as ours, open(f"{folder}/pyvenv.cfg", "w") as theirs:
        theirs.write(ours.read())
    python, here = f"{folder}/bin/python", os.path.dirname(os.path.abspath(__file__))
    with open(python, "w") as file:
        file.write(f"#!{sys.executable} -SE\nimport sys\nsys.path.insert(0, {here!r})\n"
                   f"from warm import call\ncall({folder!r}, {os.path.realpath(sys.executable)!r})\n")
    os.chmod(python, 0o755)


if __name__ == "__main__":
    make_environment(sys.argv[1])
    warm_up()
    serve(sys.argv[1])
