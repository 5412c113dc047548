# SPDX-License-Identifier: MIT
# The tiny guest: a boot sector that counts in memory and on its disks, as fast as it can.
#
# Its point: with the guest stopped at any instant, the counter in memory and the one on each disk differ by one at most. A
# snapshot in which they differ by more has memory and disks of different instants.
#
# Symbols from the command line: DISKS, how many disks to write to; FIRST and LAST, the memory to dirty, none where they are
# equal; PAGES, how many pages of it for each count.
.code16
.globl _start
.set COUNTER, 0x7e00            # right behind this sector: the buffer that is written is the counter itself
_start:
    cli
    xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movw $0x7000, %sp           # below us; SeaBIOS calls use up to 1 KiB of our stack
    movl $0, COUNTER            # so that a reset shows, and the counter is not taken for one of the time before
    movl $FIRST, cursor
    sti
again:
    incl COUNTER
.if DISKS >= 1
    movb $0x80, %dl
    call write
.endif
.if DISKS >= 2
    movb $0x81, %dl
    call write
.endif
.if LAST > FIRST
    # Real mode reaches 1 MiB only. A segment register that was loaded in protected mode keeps its limit of 4 GiB back in real
    # mode; any BIOS call may load it anew, so this is done each time.
    cli
    lgdt gdtr
    movl %cr0, %eax
    orb $1, %al
    movl %eax, %cr0
    movw $8, %bx
    movw %bx, %fs
    andb $0xfe, %al
    movl %eax, %cr0
    movl cursor, %edi
    movw $PAGES, %cx
1:  movl COUNTER, %eax
    addr32 movl %eax, %fs:(%edi)
    addl $4096, %edi
    cmpl $LAST, %edi
    jb 2f
    movl $FIRST, %edi
    incl rounds
2:  loop 1b
    movl %edi, cursor
    xorw %bx, %bx
    movw %bx, %fs
    sti
.endif
    jmp again
write:                          # the counter to LBA 1 of disk %dl; an error is not looked at: a test sees the counter stand
    movw $dap, %si
    movb $0x43, %ah             # extended write: the only one that means the same for every size of disk
    xorb %al, %al
    int $0x13
    ret
.align 4
cursor: .long 0
dap: .byte 16, 0                # disk address packet: its size, then sectors, buffer, and LBA
     .word 1
     .word COUNTER, 0
     .quad 1
.align 8
gdt: .quad 0
     .quad 0x00cf92000000ffff   # flat data, writable, 4 GiB
gdtr: .word 15
      .long gdt
. = 504                         # at a fixed place, for whoever reads it from outside
rounds: .long 0
. = 510
.word 0xaa55
