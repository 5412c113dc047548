# SPDX-License-Identifier: MIT
# A guest that never touches its disks: at each tick of the timer it counts, and writes the count to one of 128 pages in turn.
#
# Its point: what the pages hold follows from the counter alone, so a memory that was not saved at one instant shows. It sleeps
# between ticks, so that it costs next to nothing under TCG.
.code16
.globl _start
.set COUNTER, 0x7e00            # right behind this sector
.set FIRST_SEGMENT, 0x1000
.set END_SEGMENT, 0x9000
_start:
    cli
    cld
    xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %ss
    movw $0x7000, %sp
    movw $FIRST_SEGMENT, %bx    # what a guest before a reset has left there is not ours
1:  movw %bx, %es
    xorw %di, %di
    movw $0x8000, %cx
    rep stosw
    addw $0x1000, %bx
    cmpw $END_SEGMENT, %bx
    jb 1b
    movl $0, COUNTER
    movb $0x34, %al             # 200 ticks a second
    outb %al, $0x43
    movb $0x4e, %al
    outb %al, $0x40
    movb $0x17, %al
    outb %al, $0x40
    sti
again:
    hlt
    incl COUNTER
    movw COUNTER, %ax
    andw $0x7f, %ax
    shlw $8, %ax
    addw $FIRST_SEGMENT, %ax
    movw %ax, %es
    movl COUNTER, %eax
    movl %eax, %es:0
    jmp again
. = 510
.word 0xaa55
