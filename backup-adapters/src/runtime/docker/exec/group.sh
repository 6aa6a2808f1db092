# bk_end GROUP: ends what runs in a process group, except its leader and the leader's own children.
# One at a time, children before parents and older ones before younger ones, so that a parent is still there to collect
# each of them. An orphan would go to the container's process 1, and there a PostgreSQL server takes it for a crash when
# an unknown child dies by a signal or with an odd exit code, and ends all sessions.
bk_next() {
    bk_all=' '
    for bk_stat in /proc/[0-9]*/stat; do
        { IFS= read -r bk_line <"$bk_stat"; } 2>/dev/null || continue
        bk_pid=${bk_line%% *}
        # After the name in brackets: state, parent, group.
        set -- "$1" ${bk_line##*) }
        [ "$4" = "$1" ] || continue
        case $bk_pid:$3:$2 in
        "$1":* | *:"$1":* | *:"$bk_own":* | *:1:Z) ;;
        *) bk_all="$bk_all$bk_pid:$3:$2 " ;;
        esac
    done
    bk_leaf=''
    while :; do
        bk_low=''
        for bk_item in $bk_all; do
            bk_pid=${bk_item%%:*} bk_parent=${bk_item#*:}
            bk_parent=${bk_parent%:*}
            if [ -n "$bk_leaf" ]; then
                [ "$bk_parent" = "${bk_leaf%%:*}" ] || continue
            else
                case $bk_all in *" $bk_parent:"*) continue ;; esac
            fi
            if [ -z "$bk_low" ] || [ "$bk_pid" -lt "${bk_low%%:*}" ]; then bk_low=$bk_item; fi
        done
        [ -n "$bk_low" ] || break
        bk_leaf=$bk_low
    done
    [ -n "$bk_leaf" ]
}
# bk_hit GROUP SIGNAL: sends it to the last leaf, unless that has children by now. It stands still meanwhile: a child that
# it started between our look and the signal would be an orphan.
bk_hit() {
    kill -s STOP "$bk_last" 2>/dev/null
    bk_next "$1"
    if [ "${bk_leaf%%:*}" = "$bk_last" ]; then kill -s "$2" "$bk_last" 2>/dev/null; fi
    kill -s CONT "$bk_last" 2>/dev/null
    [ "${bk_leaf%%:*}" = "$bk_last" ] || bk_last=''
}
bk_end() {
    read -r bk_own bk_line </proc/self/stat
    bk_last='' bk_same=0 bk_rounds=0
    while [ "$bk_rounds" -lt 300 ]; do
        bk_next "$1" || return 0
        [ "${bk_leaf%%:*}" = "$bk_last" ] || bk_same=0
        bk_last=${bk_leaf%%:*}
        case $bk_leaf in
        # Its parent is about to collect it.
        *:Z) ;;
        *)
            case $bk_same in
            0 | 10) bk_hit "$1" TERM ;;
            20 | 30 | 40) bk_hit "$1" KILL ;;
            esac
            ;;
        esac
        bk_same=$((bk_same + 1)) bk_rounds=$((bk_rounds + 1))
        sleep 0.1 2>/dev/null || sleep 1
    done
    return 1
}
# bk_children GROUP: the children of the group's leader that are in it, without this shell and what is dead.
bk_children() {
    bk_all=''
    for bk_stat in /proc/[0-9]*/stat; do
        { IFS= read -r bk_line <"$bk_stat"; } 2>/dev/null || continue
        bk_pid=${bk_line%% *}
        set -- "$1" ${bk_line##*) }
        case $bk_pid:$2:$3:$4 in
        "$bk_own":* | *:Z:*) ;;
        *:"$1":"$1") bk_all="$bk_all $bk_pid" ;;
        esac
    done
    [ -n "$bk_all" ]
}
