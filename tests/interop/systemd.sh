#!/usr/bin/env bash
# systemd as the first process of namespaces of its own, with our units and nothing else of this machine's.
#
# In: a folder with bin/ (the programs), units/, etc/ (goes over /etc) and drive.sh, which runs beside the units and writes to out/. Out: it ends
# when out/done is there, or after a minute and a half. Never: changes a file, a mount, a group or a service of this machine.
set -euo pipefail
folder=$(cd "$1" && pwd)

if [ "${2:-}" = inside ]; then
  # The machine's /usr/bin, /etc and /var/lib, and over them what is ours.
  mount -t tmpfs over "$folder/over"
  for place in usr/bin etc var/lib; do
    mkdir -p "$folder/over/$place" "$folder/over/work/$place"
    mount -t overlay overlay -o "lowerdir=/$place,upperdir=$folder/over/$place,workdir=$folder/over/work/$place" "/$place"
  done
  install -m 755 "$folder"/bin/* /usr/bin/
  cp -r "$folder"/etc/. /etc/
  echo 'quietline-turn:x:987:987::/nonexistent:/usr/sbin/nologin' >>/etc/passwd
  echo 'quietline-turn:x:987:' >>/etc/group
  chown -R 0:0 /etc/quietline /etc/quietline-turn
  chmod -R u=rwX,go=rX /etc/quietline /etc/quietline-turn
  chmod -R u=rX,go= /etc/quietline/keys /etc/quietline-turn/keys
  chown -R 987:987 /etc/quietline-turn/keys
  mount -t tmpfs -o mode=755 run /run
  # What the kernel has of the whole machine stays as it is.
  mount --bind /proc/sys /proc/sys
  mount -o remount,bind,ro /proc/sys
  umount --recursive --lazy /sys/fs/cgroup
  mount -t cgroup2 groups /sys/fs/cgroup
  mount --make-rshared /
  export container=quietline SYSTEMD_UNIT_PATH="$folder/units"
  exec /lib/systemd/systemd --system --unit=test.target --log-target=console
fi

# Processes and mounts of ours alone; a group of processes that systemd may divide.
if [ "${2:-}" = groups ]; then
  mount --make-rprivate /
  mkdir -p "$folder/groups" "$folder/over" "$folder/out"
  mount -t cgroup2 groups "$folder/groups"
  group=$folder/groups/quietline-$$
  mkdir "$group"
  echo $$ >"$group/cgroup.procs"
  unshare --pid --fork --kill-child --mount --uts --ipc --cgroup --mount-proc "$0" "$folder" inside </dev/null >"$folder/out/systemd.log" 2>&1 &
  system=$!
  for _ in $(seq 900); do
    [ -e "$folder/out/done" ] && break
    kill -0 $system 2>/dev/null || break
    sleep 0.1
  done
  kill -KILL $system 2>/dev/null || true
  wait $system 2>/dev/null || true
  echo $$ >"$folder/groups/cgroup.procs"
  # The last processes leave their groups a moment later.
  for _ in $(seq 50); do
    find "$group" -depth -type d -exec rmdir {} \; 2>/dev/null || true
    [ -e "$group" ] || break
    sleep 0.1
  done
  exit 0
fi
exec unshare --mount "$0" "$folder" groups
