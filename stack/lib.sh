# shellcheck shell=bash
# What the scripts of this directory and scripts/test share.

stack_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache_dir=${XDG_CACHE_HOME:-$HOME/.cache}/backup

say() {
    printf '%s\n' "$*" >&2
}

die() {
    say "${0##*/}: $*"
    exit 1
}

# Prints the comment at the head of a script: its help.
help_of() {
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$1"
}

as_root() {
    if ((EUID == 0)); then
        "$@"
    else
        sudo "$@"
    fi
}

# Whether a command is there, also where only root or PostgreSQL's own scripts look.
has_command() {
    local postgres=(/usr/lib/postgresql/*/bin)
    PATH=$PATH:/usr/sbin:/sbin:${postgres[-1]} command -v "$1" >/dev/null
}

# Installs the packages whose commands are missing: pairs of command and package.
#
# Servers among them are neither started now nor at the next boot: the tests start their own.
install_missing() {
    local packages=() services=()
    while (($#)); do
        if ! has_command "$1"; then
            packages+=("$2")
            case $2 in
            redis-server | postgresql) services+=("$2") ;;
            esac
        fi
        shift 2
    done
    ((${#packages[@]})) || return 0
    command -v apt-get >/dev/null || die "please install: ${packages[*]}"
    say "installing ${packages[*]}"
    local policy=/usr/sbin/policy-rc.d ours=false status=0
    if [[ ! -e $policy ]]; then
        ours=true
        printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
        as_root chmod 755 "$policy"
    fi
    # Its account of every package is of interest only if it fails.
    local log
    log=$(mktemp)
    if ! { as_root apt-get update -qq &&
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}"; } >"$log" 2>&1; then
        status=1
        tail -n 20 "$log" >&2
    fi
    rm -f "$log"
    if $ours; then
        as_root rm -f "$policy"
    fi
    if ((${#services[@]})) && command -v systemctl >/dev/null; then
        as_root systemctl disable --quiet "${services[@]}" >&2 || true
    fi
    ((status == 0)) || die "cannot install: ${packages[*]}"
}

# Whether a Docker engine answers.
engine_answers() {
    docker version --format '{{.Server.Version}}' >/dev/null 2>&1
}

# Removes what test processes that are gone left in the engine: whatever has a label `backup-test` with their process id.
remove_leftovers() {
    local kind list remove id pid
    for kind in container volume network; do
        case $kind in
        container) list=(docker container ls -aq) remove=(docker container rm -fv) ;;
        *) list=(docker "$kind" ls -q) remove=(docker "$kind" rm) ;;
        esac
        for id in $("${list[@]}" --filter label=backup-test); do
            case $kind in
            container) pid=$(docker container inspect --format '{{index .Config.Labels "backup-test"}}' "$id") || continue ;;
            *) pid=$(docker "$kind" inspect --format '{{index .Labels "backup-test"}}' "$id") || continue ;;
            esac
            if [[ $pid =~ ^[0-9]+$ && ! -e /proc/$pid ]]; then
                say "removing the $kind $id, which a dead test left"
                "${remove[@]}" "$id" >/dev/null || true
            fi
        done
    done
}

# Waits up to $1 seconds for the rest of the arguments, a command, to succeed.
wait_for() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < deadline)) || return 1
        sleep 0.2
    done
}

# Chooses the stack by its name: sets STACK_NAME for compose.yaml, and where its passwords are.
choose_stack() {
    [[ $1 =~ ^[a-z0-9][a-z0-9-]*$ ]] || die "a stack's name is of a-z, 0-9 and -: \`$1\` is not"
    export STACK_NAME=$1
    env_file=$stack_dir/.env
    [[ $1 == truthsi ]] || env_file+=.$1
}

# Docker Compose for the stack that was chosen: the plugin, else the older program, which is installed if there is neither.
# STACK_COMPOSE names a file that adds to compose.yaml.
compose() {
    local program=(docker compose)
    if ! docker compose version >/dev/null 2>&1; then
        install_missing docker-compose docker-compose
        program=(docker-compose)
    fi
    "${program[@]}" --project-name "$STACK_NAME" --file "$stack_dir/compose.yaml" ${STACK_COMPOSE:+--file "$STACK_COMPOSE"} --env-file "$env_file" "$@"
}

# Bytes of a size such as 10MB or 1GB, as whole megabytes (10^6 bytes).
megabytes() {
    case $1 in
    *GB) set -- "${1%GB}" 1000 ;;
    *MB) set -- "${1%MB}" 1 ;;
    *) die "a size is a number with MB or GB: \`$1\` is not" ;;
    esac
    [[ $1 =~ ^[1-9][0-9]*$ ]] || die "a size is a number with MB or GB"
    echo $(($1 * $2))
}

# The command line client for a service of the stack, as the array `client`; passwords are in the environment only.
choose_client() {
    local service=$1
    case $service in
    redis)
        [[ ! -e $env_file ]] || REDISCLI_AUTH=$(sed -n 's/^REDIS_PASSWORD=//p' "$env_file")
        export REDISCLI_AUTH=${REDISCLI_AUTH:-}
        client=(docker exec -i -e REDISCLI_AUTH "$STACK_NAME-redis" redis-cli)
        ;;
    yugabyte) client=(docker exec -i "$STACK_NAME-yugabyte" ysqlsh -h localhost -U yugabyte) ;;
    postgres) client=(docker exec -i "$STACK_NAME-postgres" psql -U ceo_admin) ;;
    weaviate)
        [[ ! -e $env_file ]] || WEAVIATE_API_KEY=$(sed -n 's/^WEAVIATE_API_KEY=//p' "$env_file")
        export WEAVIATE_API_KEY=${WEAVIATE_API_KEY:-}
        client=("http://$(docker port "$STACK_NAME-weaviate" 8080)")
        ;;
    neo4j)
        [[ ! -e $env_file ]] || NEO4J_PASSWORD=$(sed -n 's/^NEO4J_PASSWORD=//p' "$env_file")
        export NEO4J_PASSWORD=${NEO4J_PASSWORD:-}
        client=(docker exec -i -e NEO4J_PASSWORD "$STACK_NAME-neo4j" cypher-shell)
        ;;
    *) die "no service \`$service\`: redis, yugabyte, postgres, weaviate or neo4j" ;;
    esac
}
