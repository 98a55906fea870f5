"""Is everything here that the pipeline needs? Says what to install or set, and stops at once if not.

Runs before anything is installed, so it uses the standard library only, and syntax that an old Python can still read.

    python3 pipeline/preflight.py                  Python, Java, the folder of Delta jars if one is named
    .venv/bin/python pipeline/preflight.py --jars  also fetches Delta's jars into the Ivy cache, with a deadline
"""

import glob
import os
import re
import shutil
import subprocess
import sys
import tempfile

DELTA_VERSION = "4.0.1"
DELTA_JARS = ("delta-spark_2.13-%s.jar" % DELTA_VERSION, "delta-storage-%s.jar" % DELTA_VERSION)
FETCH_DEADLINE_SECONDS = int(os.environ.get("ITEMSAGE_FETCH_DEADLINE", "120"))
JAVA_VERSIONS = (17, 21)


def stop(message):
    """Print one message and exit with 2."""
    print("error: " + message)
    sys.exit(2)


def check_python():
    """Python 3.10 to 3.12: pyarrow 14 has no wheels beyond."""
    if not (3, 10) <= sys.version_info[:2] <= (3, 12):
        stop(
            "Python %d.%d found; 3.10, 3.11 or 3.12 is needed. Install one and run `make PYTHON=python3.11 ...`."
            % sys.version_info[:2]
        )


def find_java():
    """The java of JAVA_HOME, else of the PATH, as Spark looks for it; None where there is none on the PATH."""
    home = os.environ.get("JAVA_HOME")
    return os.path.join(home, "bin", "java") if home else shutil.which("java")


def check_java():
    """Java 17 or 21."""
    home = os.environ.get("JAVA_HOME")
    java = find_java()
    wanted = "Install a Java 17 or 21 runtime (package openjdk-17-jre-headless, for example), or set JAVA_HOME to one."
    if not java or not os.path.exists(java):
        stop("no Java found%s. %s" % (" at JAVA_HOME=" + home if home else " on the PATH", wanted))
    try:
        text = subprocess.run(
            [java, "-version"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=30, check=False
        ).stdout.decode("utf-8", "replace")
    except (OSError, subprocess.TimeoutExpired) as error:
        stop("%s -version does not answer: %s. %s" % (java, error, wanted))
    found = re.search(r'version "(\d+)', text)
    if not found or int(found.group(1)) not in JAVA_VERSIONS:
        stop("Java %s found at %s; Spark 4 takes 17 or 21. %s" % (found.group(1) if found else "?", java, wanted))


def check_jar_folder():
    """Both jars in ITEMSAGE_DELTA_JARS, where it is set: Spark itself would only warn, and fail much later."""
    folder = os.environ.get("ITEMSAGE_DELTA_JARS")
    if not folder:
        return
    for jar in DELTA_JARS:
        if not glob.glob(os.path.join(folder, "*" + jar)):
            stop("ITEMSAGE_DELTA_JARS=%s lacks %s. The README says how to fetch the folder once." % (folder, jar))


def fetch_jars():
    """Resolve Delta's jars into the Ivy cache, unless they are there or a folder of them is named."""
    if os.environ.get("ITEMSAGE_DELTA_JARS"):
        return
    cache = os.path.expanduser("~/.ivy2.5.2/jars")
    if all(glob.glob(os.path.join(cache, "*" + jar)) for jar in DELTA_JARS):
        return
    print("fetching Delta's jars (at most %d s) ..." % FETCH_DEADLINE_SECONDS)
    sys.stdout.flush()
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    bin_folder = os.path.dirname(os.path.abspath(sys.executable))
    with tempfile.TemporaryDirectory() as folder:
        script, log = os.path.join(folder, "nothing.py"), os.path.join(folder, "log")
        open(script, "w").close()
        command = [os.path.join(bin_folder, "spark-submit"), "--properties-file"]
        command += [os.path.join(root, "spark-defaults.conf"), script]
        env = dict(os.environ, PATH=bin_folder + os.pathsep + os.environ.get("PATH", ""))
        with open(log, "w") as output:
            try:
                code = subprocess.run(
                    command, stdout=output, stderr=output, env=env, timeout=FETCH_DEADLINE_SECONDS, check=False
                ).returncode
            except subprocess.TimeoutExpired:
                code = None
        if code == 0:
            return
        with open(log) as output:
            tail = "".join(output.readlines()[-15:])
    reason = "did not answer within %d s" % FETCH_DEADLINE_SECONDS if code is None else "could not be resolved"
    stop(
        "%s\nDelta's jars (io.delta:delta-spark_2.13:%s) %s. Check the proxy of your Maven repository, or set "
        "ITEMSAGE_DELTA_JARS to a folder that holds %s; the README says how to fetch it once."
        % (tail, DELTA_VERSION, reason, " and ".join(DELTA_JARS))
    )


def main():
    """Run the checks that the arguments ask for."""
    check_python()
    check_java()
    check_jar_folder()
    if "--jars" in sys.argv[1:]:
        fetch_jars()


if __name__ == "__main__":
    main()
