# sh -c THIS sh NONCE MODE COUNT NAME… PROGRAM ARGUMENT…
# The engine drops what a program printed if nobody reads it within 2 s of the program's end. So this shell stays until
# the client says that it has everything. Its standard input (3) carries lines, which are never mixed with the input of
# the program: a length and so many bytes of input, `0` for the end of the input, `Q` for "I have everything". The end
# of the line itself means that the client is gone: then the program is ended, and never told that its input is complete.
bk_nonce=$1 bk_mode=$2 bk_count=$3
shift 3
exec 3<&0 </dev/null
bk_fail() {
    printf '##ERR %s %s\n' "$bk_nonce" "$1" >&2
    exit 125
}
while [ "$bk_count" -gt 0 ]; do
    IFS= read -r bk_lines <&3 && IFS= read -r bk_value <&3 || exit 125
    while [ "$bk_lines" -gt 1 ]; do
        IFS= read -r bk_line <&3 || exit 125
        bk_value="$bk_value
$bk_line" bk_lines=$((bk_lines - 1))
    done
    export "$1=$bk_value"
    shift
    bk_count=$((bk_count - 1))
done
read -r bk_line <"/proc/$$/stat" || bk_fail proc
bk_group() { bk_group=$3; }
bk_group ${bk_line##*) }
[ "$bk_group" = "$$" ] || bk_fail group
if [ "$bk_mode" = input ]; then
    printf x | dd bs=1 count=1 iflag=fullblock >/dev/null 2>&1 || bk_fail dd
fi
# Before anything that the program prints, and on the same stream: only there it stays the first.
printf '##PID %s %s\n' "$bk_nonce" "$$"
bk_feed() {
    while IFS= read -r bk_line; do
        case $bk_line in
        0) exec >/dev/null ;;
        Q) exit 0 ;;
        *)
            dd bs="$bk_line" count=1 iflag=fullblock 2>/dev/null && continue
            # The program has ended, and whoever read for it.
            exec >/dev/null
            printf '\n##FED %s\n' "$bk_nonce" >&2
            cat
            ;;
        esac
    done
    # Until who runs the program is gone as well: it may be about to start it, and must not find its input at an end.
    while bk_end "$$"; bk_children "$$"; do
        sleep 0.1 2>/dev/null || sleep 1
    done
    exit 0
}
bk_feed <&3 3<&- | {
    if [ "$bk_mode" = input ]; then
        (exec 3<&- && exec "$@")
    else
        (exec 3<&- </dev/null && exec "$@")
    fi
    bk_code=$?
    printf '##END %s %s\n' "$bk_nonce" "$bk_code"
    printf '\n##END %s %s\n' "$bk_nonce" "$bk_code" >&2
    exit "$bk_code"
}
