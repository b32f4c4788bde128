#!/usr/bin/env bash
# Makes a machine a node: the package in a virtual environment that login shells find.
#
#   setup_node.sh STORAGE EXTRA [REQUIREMENT ...]      EXTRA: s3, gs, or '' for a shared folder
#
# `ray up` runs it on every node, and again after a change: what is right already stays as it is.
set -euo pipefail

ray_version=2.60.0 # on every node the same, and on the machine that runs `ray up`

storage=$1
extra=$2
shift 2
source=~/distsynth-source # where file_mounts puts the package
environment=~/distsynth-venv
python=${PYTHON:-python3}

# Home may be shared by the nodes, and they are set up at the same time.
exec 9>~/.distsynth-setup.lock
flock 9

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "distsynth needs Python 3.11 or later: name one with PYTHON=..." >&2
    exit 1
}
if ! "$python" -c 'import ensurepip' 2>/dev/null; then
    # A fresh image may still hold the lock for updates of its own.
    sudo apt-get -qq -o DPkg::Lock::Timeout=600 update
    sudo apt-get -qq -o DPkg::Lock::Timeout=600 install --yes python3-venv
fi

wanted=$(
    cd "$source"
    {
        echo "$ray_version $extra $*"
        find . -name __pycache__ -prune -o -type f -print0 | sort -z | xargs -0 sha256sum
    } | sha256sum
)
if [[ $(cat "$environment/distsynth-installed" 2>/dev/null) != "$wanted" ]]; then
    # From a copy: building writes into the tree, and Ray compares the tree between nodes.
    copy=$(mktemp -d)
    trap 'rm -rf "$copy"' EXIT
    cp -r "$source/." "$copy"
    [[ -x $environment/bin/pip ]] || "$python" -m venv "$environment"
    # In one call, so that the cloud's client and the storage's agree on a version.
    "$environment/bin/python" -m pip install --quiet "$copy${extra:+[$extra]}" \
        "ray[default,tune]==$ray_version" "$@"
    echo "$wanted" >"$environment/distsynth-installed"
fi

cat >~/.distsynth.sh <<END
export PATH="$environment/bin:\$PATH"
export DISTSYNTH_STORAGE="$storage"
export RAY_AUTH_MODE=token
export RAY_USAGE_STATS_ENABLED=0 RAY_USAGE_STATS_REPORT_URL=http://127.0.0.1:9
END
for profile in ~/.bashrc ~/.profile; do
    grep -qxF '. ~/.distsynth.sh' "$profile" 2>/dev/null || echo '. ~/.distsynth.sh' >>"$profile"
done

# Whoever reads the token may run code on the cluster.
chmod 700 ~/.ray
chmod 600 ~/.ray/auth_token
