# A boot loader as small as one can be, for a disk that the tests make: loads a Linux kernel and its initial file system from
# known places of the disk by the BIOS' own calls, and starts it by the kernel's 16-bit boot protocol.
#
# Told by the assembler's command line: SETUP (sectors of the kernel's real mode part, which begins at sector 16), KERNEL (sectors of
# the rest, which follow), INITRD and INITRD_BYTES (sectors and bytes of what follows then). The command line is in the file `line`.
    .code16
    .set FIRST, 16
    .set LOW, 0x10000           # where the real mode part goes
    .set HIGH, 0x100000         # where the rest of the kernel goes
    .set FILES, 0x6000000       # where the initial file system goes
    .set LINE, 0xe000           # where the command line goes, from LOW
    .set PIECE, 64              # sectors at once, by way of 0x40000
    .globl _start
_start:                         # at 0x7c00: the first sector fetches the others
    xor %ax, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %ss
    mov $0x7c00, %sp
    mov %dl, drive
    mov $packet, %si
    mov $0x42, %ah
    int $0x13
    jc failed
    jmp loaded
failed:
    mov $0xfe, %al              # reset the machine, which ends it
    out %al, $0x64
    hlt
drive:  .byte 0
packet: .word 16                # a packet of the BIOS' extended read
count:  .word FIRST - 1
offset: .word 0x7e00
segment: .word 0
sector: .long 1, 0
    .org 510
    .word 0xaa55

loaded:
    movw $0, offset
    movw $0x4000, segment
    mov $FIRST, %ebx
    mov $SETUP, %ecx
    mov $LOW, %edi
    call fetch
    mov $KERNEL, %ecx
    mov $HIGH, %edi
    call fetch
    mov $INITRD, %ecx
    mov $FILES, %edi
    call fetch
    mov $LOW >> 4, %ax
    mov %ax, %es
    mov $line, %si
    mov $LINE, %di
    mov $line_end - line, %cx
    rep movsb
    movb $0xff, %es:0x210       # type_of_loader: none that is known
    orb $0x80, %es:0x211        # loadflags: there is a heap
    movl $FILES, %es:0x218      # ramdisk_image
    movl $INITRD_BYTES, %es:0x21c
    movw $LINE - 0x200, %es:0x224  # heap_end_ptr
    movl $LOW + LINE, %es:0x228 # cmd_line_ptr
    cli
    mov %ax, %ds
    mov %ax, %fs
    mov %ax, %gs
    mov %ax, %ss
    mov $LINE, %sp
    ljmp $(LOW >> 4) + 0x20, $0

fetch:                          # %ecx sectors from %ebx on to %edi; moves %ebx on
    test %ecx, %ecx
    jz 2f
    mov $PIECE, %eax
    cmp %eax, %ecx
    jae 1f
    mov %ecx, %eax
1:  mov %ax, count
    mov %ebx, sector
    pushal
    mov drive, %dl
    mov $packet, %si
    mov $0x42, %ah
    int $0x13
    jc failed
    popal
    pushal
    mov %edi, %eax
    mov %ax, target
    shr $16, %eax
    mov %al, target + 2
    mov %ah, target + 5
    mov count, %cx
    shl $8, %cx                 # in words
    mov $table, %si
    mov $0x87, %ah              # copy to beyond the first MiB
    int $0x15
    jc failed
    popal
    movzwl count, %eax
    add %eax, %ebx
    sub %eax, %ecx
    shl $9, %eax
    add %eax, %edi
    jmp fetch
2:  ret

    .balign 8
table:                          # of segments, as that call wants it
    .zero 16
    .word 0xffff, 0, 0x9304, 0  # from 0x40000
    .word 0xffff
target: .word 0, 0x9300, 0
    .zero 16
line:   .incbin "line"
    .byte 0
line_end:
    .org FIRST * 512
