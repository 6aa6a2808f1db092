# sh -c THIS sh LEADER NONCE: ends the group that LEADER leads, if it is the one of NONCE.
if [ -d "/proc/$1" ]; then
    { bk_line=$(cat "/proc/$1/cmdline"); } 2>/dev/null
    case $bk_line in
    *"$2"*) ;;
    *) exit 0 ;;
    esac
fi
bk_wait() {
    for bk_turn in 1 2 3 4 5 6 7 8 9 10; do
        bk_end "$1"
        [ -d "/proc/$1" ] || exit 0
        sleep 0.3 2>/dev/null || sleep 1
    done
}
bk_wait "$1"
# The engine has not told the leader's children that the client is gone. The leader collects them, and goes last.
bk_children "$1" && kill -s KILL $bk_all 2>/dev/null
bk_wait "$1"
kill -s KILL -- "-$1"
