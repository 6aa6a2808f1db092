# shellcheck shell=bash
# What the rehearsals share; they source it after lib.sh.
#
# Takes their arguments; sets `backup`, `name`, `size`, `work` (removed at the end, as the stack is) and `run`, the command.

size=10MB
name=rehearsal-$$
keep=false
backup=$stack_dir/../target/release/backup
extra=()
while (($#)); do
    case $1 in
    --name) name=${2:?--name needs a name} && shift ;;
    --size) size=${2:?--size needs a size} && shift ;;
    --backup) backup=${2:?--backup needs a path} && shift ;;
    --keep) keep=true ;;
    -h | --help) help_of "$0" && exit 0 ;;
    *) extra+=("$1") ;;
    esac
    shift
done
[[ -x $backup ]] || die "no program \`$backup\`: \`cargo build --release\`, or --backup PATH"
backup=$(realpath "$backup")
choose_stack "$name"

work=$(mktemp -d "${TMPDIR:-/tmp}/rehearsal-XXXXXX")
# shellcheck disable=SC2034 # of the rehearsals
run=("$backup" --config "$work/backup.toml")
writers=()
# What a rehearsal has to undo by itself, after its stack is gone.
at_end=()
finish() {
    # A signal may have come while a line was read with another one.
    local pid command IFS=$' \t\n'
    for pid in "${writers[@]}"; do
        kill "$pid" 2>/dev/null || true
    done
    if $keep; then
        say "kept: $work, and the stack ($stack_dir/down --name $name)"
    else
        "$stack_dir/down" --name "$name" >/dev/null 2>&1 || true
        for command in "${at_end[@]}"; do
            $command || true
        done
        rm -rf "$work"
    fi
}
trap finish EXIT

last_ms=0
# Runs a command and tells how long it took.
timed() {
    local what=$1 started=${EPOCHREALTIME/./} status=0
    shift
    "$@" >"$work/log" 2>&1 || status=$?
    last_ms=$(((${EPOCHREALTIME/./} - started) / 1000))
    if ((status)); then
        cat "$work/log" >&2
        die "$what: exit code $status"
    fi
    printf '%-44s %6d.%d s\n' "$what" $((last_ms / 1000)) $((last_ms % 1000 / 100))
}

# Less than so many seconds went by in the last one.
within() {
    ((last_ms < $1 * 1000)) || die "that is $1 s or more"
}

# Compares before.SERVICE with after.SERVICE.
same() {
    local service
    for service in "$@"; do
        diff "$work/before.$service" "$work/after.$service" >&2 || die "$service is not what it was"
        printf '%-44s %8s\n' "$service: content" identical
    done
}

stop_writers() {
    local pid
    for pid in "${writers[@]}"; do
        pkill -P "$pid" 2>/dev/null || true
        kill "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    writers=()
}

healthy() {
    [[ $(docker inspect --format '{{.State.Health.Status}}' "$1") == healthy ]]
}

# A bucket, and a key to encrypt for. What the program needs to reach it is in the environment, as on an instance.
storage() {
    install_missing curl curl
    docker run -d --name "$name-storage" --label "backup-test.stack=$name-storage" -e MINIO_ROOT_USER=rehearsal \
        -e MINIO_ROOT_PASSWORD=rehearsal-only --entrypoint sh backup-test/minio -c 'mkdir -p /data/bucket; exec minio server /data'
    at_end+=("docker rm -fv $name-storage")
    local address
    address=$(docker inspect --format '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' "$name-storage")
    export AWS_ENDPOINT_URL_S3=http://$address:9000 AWS_REGION=us-east-1 AWS_ACCESS_KEY_ID=rehearsal AWS_SECRET_ACCESS_KEY=rehearsal-only
    wait_for 60 curl -sf "$AWS_ENDPOINT_URL_S3/minio/health/ready" || die "the storage does not answer"
    "$backup" keys new "$work/key"
}
