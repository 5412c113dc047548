#!/bin/busybox sh
# SPDX-License-Identifier: MIT
# The first process of the Linux guest: it mounts the first disk, starts the agent, and with WRITES=1 on the kernel's command
# line counts for ever in /mnt/counter, each line durable before the console shows its number.
/bin/busybox mkdir -p /proc /sys /dev /mnt /tmp /run /var/run /etc /bin /sbin /usr/bin /usr/sbin
/bin/busybox --install -s # each where it belongs: the agent looks for /sbin/hwclock
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev

fail() {
    echo "guest: $1"
    poweroff -f
}
while read -r module; do
    insmod "/modules/$module" || fail "the module $module does not load"
done </modules/order

[ -b /dev/vda ] || fail "there is no /dev/vda"
mount -t ext4 /dev/vda /mnt || fail "/dev/vda has no ext4 file system"

mkdir -p /dev/virtio-ports
for port in /sys/class/virtio-ports/*; do
    name=$(cat "$port/name" 2>/dev/null)
    [ -n "$name" ] && ln -sf "/dev/${port##*/}" "/dev/virtio-ports/$name"
done
agent=/dev/virtio-ports/org.qemu.guest_agent.0
[ -e "$agent" ] || fail "there is no port for the agent"
/usr/sbin/qemu-ga -m virtio-serial -p "$agent" &

count=$(tail -n 1 /mnt/counter 2>/dev/null)
while [ "$WRITES" = 1 ]; do
    count=$((count + 1))
    echo "$count" >>/mnt/counter && sync && echo "count $count"
    usleep 10000
done
while :; do sleep 3600; done
