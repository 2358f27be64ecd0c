# The tiny guest's boot loader: it puts an unpacked Linux kernel where it belongs and
# enters it by the PVH entry (xen/include/public/arch-x86/hvm/start_info.h), which
# takes 32-bit protected mode, physical addresses, and a structure that names command
# line, initial file system and memory map. Nothing has to be decompressed, which is
# most of what an emulated processor otherwise does until Linux speaks.
#
# The first sector is the master boot record: it reads the next 16 sectors behind
# itself. The parameters at PARAMS are written by the program that makes the disk
# (images/boot.go): entry, initrd address and size, number of extents, then extents of
# three words each (first sector, number of sectors, physical address); an extent with
# first sector 0 is filled with zeros. The command line is at CMDLINE.

	.equ	PARAMS, 0x8600
	.equ	CMDLINE, 0x9600
	.equ	BUFFER, 0x10000		# one read: at most 120 sectors
	.equ	CHUNK, 120
	.equ	MEMMAP, 0xa000

	.code16
	.globl	_start
_start:
	cli
	xorw	%ax, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss
	movw	$0x7c00, %sp
	ljmp	$0, $1f
1:	sti
	cld
	movb	%dl, drive
	movw	$packet, %si
	movb	$0x42, %ah
	int	$0x13
	jc	fail
	jmp	stage2

fail:	movw	$message, %si
1:	lodsb
	testb	%al, %al
	jz	2f
	movb	$0x0e, %ah
	xorw	%bx, %bx
	int	$0x10
	jmp	1b
2:	hlt
	jmp	2b

message: .asciz	"The disk cannot be read"
drive:	.byte	0
	.balign	4
packet:	.word	16
count:	.word	16
	.word	0x7e00
segment: .word	0
lba:	.long	1, 0

	.org	510
	.word	0xaa55

stage2:
	inb	$0x92, %al		# address line 20
	orb	$2, %al
	andb	$0xfe, %al
	outb	%al, $0x92

# The memory map, 24 bytes an entry.
	movw	$MEMMAP, %di
	xorl	%ebx, %ebx
map:	movl	$0xe820, %eax
	movl	$0x534d4150, %edx
	movl	$20, %ecx
	movl	$0, 20(%di)
	int	$0x15
	jc	mapped
	cmpl	$0x534d4150, %eax
	jne	mapped
	incl	info_entries
	addw	$24, %di
	testl	%ebx, %ebx
	jnz	map
mapped:

# The extents.
	movl	PARAMS+12, %ebp
	movw	$PARAMS+16, %bx
	movw	$0, packet+4
	movw	$BUFFER>>4, segment
extent:	testl	%ebp, %ebp
	jz	loaded
more:	movl	4(%bx), %eax		# sectors left
	testl	%eax, %eax
	jz	next
	cmpl	$CHUNK, %eax
	jbe	1f
	movl	$CHUNK, %eax
1:	movw	%ax, count
	movl	(%bx), %ecx
	testl	%ecx, %ecx
	jz	place			# zeros: nothing to read
	movl	%ecx, lba
	pushal
	movw	$packet, %si
	movb	drive, %dl
	movb	$0x42, %ah
	int	$0x13
	popal
	jc	fail
	addl	%eax, (%bx)
place:	subl	%eax, 4(%bx)
	movl	%eax, %edx
	shll	$9, %edx		# bytes
	movl	8(%bx), %edi
	addl	%edx, 8(%bx)
	movl	%edx, %eax
	shrl	$2, %eax
	xchgl	%eax, %ecx		# ecx: words, eax: first sector read, or 0
	movl	$BUFFER, %esi
# Flat segments for one copy; the firmware needs its own for the next read.
	cli
	lgdtl	gdt
	movl	%cr0, %edx
	orb	$1, %dl
	movl	%edx, %cr0
	movw	$8, %dx
	movw	%dx, %ds
	movw	%dx, %es
	testl	%eax, %eax
	jz	2f
	rep	movsl (%esi), %es:(%edi)
	jmp	3f
2:	addr32 rep stosl
3:	movl	%cr0, %edx
	andb	$0xfe, %dl
	movl	%edx, %cr0
	xorw	%dx, %dx
	movw	%dx, %ds
	movw	%dx, %es
	sti
	jmp	more
next:	addw	$12, %bx
	decl	%ebp
	jmp	extent

loaded:	movl	PARAMS+4, %eax
	movl	%eax, module
	movl	PARAMS+8, %eax
	movl	%eax, module+8
	cli
	lgdtl	gdt
	movl	%cr0, %eax
	orb	$1, %al
	movl	%eax, %cr0
	ljmpl	$16, $enter

	.code32
enter:	movw	$8, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss
	xorl	%eax, %eax
	movl	%eax, %cr4
	movl	$info, %ebx
	jmp	*PARAMS

	.balign	8
table:	.quad	0
	.quad	0x00cf92000000ffff	# data, flat
	.quad	0x00cf9a000000ffff	# code, flat
gdt:	.word	. - table - 1
	.long	table

	.balign	8
info:	.long	0x336ec578, 1, 0, 1	# magic, version, flags, modules
	.long	module, 0, CMDLINE, 0, 0, 0, MEMMAP, 0
info_entries:
	.long	0, 0
module:	.quad	0, 0, 0, 0

	.org	PARAMS - 0x7c00
