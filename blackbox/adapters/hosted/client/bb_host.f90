! bb_host: a Fortran program asks a network in the middle of its work, and goes on with the answer.
!
! Compile bb_host.c with a C compiler and this file with yours (Fortran 2008), and link both. In the time loop:
!
!     use bb_host
!     if (.not. bb_exchange("closure", vorticity, tendency)) call my_own_closure(vorticity, tendency)
!
! Arrays are numbers or have 1 to 4 dimensions, in single or double precision, and in any layout in memory. Indices
! mean the same on both sides: vorticity(i, j) is vorticity[i - 1, j - 1] in Python. Where no trainer has started the
! program, nothing is asked, the answer is .false., and the arrays stay as they are. See bb_host.h.
module bb_host
  use, intrinsic :: iso_c_binding
  implicit none
  private
  public :: bb_open, bb_open_part, bb_exchange, bb_put, bb_put_part, bb_call, bb_get, bb_output, bb_close

  integer(c_int), parameter :: of_float = 1, of_double = 2, of_int = 3

  interface
    integer(c_int) function c_open() bind(c, name="bb_open")
      import :: c_int
    end function
    integer(c_int) function c_open_part(rank, size) bind(c, name="bb_open_part")
      import :: c_int
      integer(c_int), value :: rank, size
    end function
    integer(c_int) function c_call(call) bind(c, name="bb_call")
      import :: c_int, c_char
      character(kind=c_char), intent(in) :: call(*)
    end function
    subroutine c_put(name, type, rank, dims, data) bind(c, name="bb_put_copy")
      import :: c_int, c_char, c_ptr
      character(kind=c_char), intent(in) :: name(*)
      integer(c_int), value :: type, rank
      integer(c_int), intent(in) :: dims(*)
      type(c_ptr), value :: data
    end subroutine
    subroutine c_put_part(name, type, rank, dims, first, whole, data) bind(c, name="bb_put_part_copy")
      import :: c_int, c_char, c_ptr
      character(kind=c_char), intent(in) :: name(*)
      integer(c_int), value :: type, rank
      integer(c_int), intent(in) :: dims(*), first(*), whole(*)
      type(c_ptr), value :: data
    end subroutine
    subroutine c_get(name, type, rank, dims, data) bind(c, name="bb_get")
      import :: c_int, c_char, c_ptr
      character(kind=c_char), intent(in) :: name(*)
      integer(c_int), value :: type, rank
      integer(c_int), intent(in) :: dims(*)
      type(c_ptr), value :: data
    end subroutine
    subroutine c_output(name, type, rank, dims, data) bind(c, name="bb_output")
      import :: c_int, c_char, c_ptr
      character(kind=c_char), intent(in) :: name(*)
      integer(c_int), value :: type, rank
      integer(c_int), intent(in) :: dims(*)
      type(c_ptr), value :: data
    end subroutine
    integer(c_int) function c_exchange(call, in, in_rank, in_dims, out, out_rank, out_dims) &
        bind(c, name="bb_exchange")
      import :: c_int, c_char, c_ptr
      character(kind=c_char), intent(in) :: call(*)
      type(c_ptr), value :: in, out
      integer(c_int), value :: in_rank, out_rank
      integer(c_int), intent(in) :: in_dims(*), out_dims(*)
    end function
    integer(c_int) function c_exchange_float(call, in, in_rank, in_dims, out, out_rank, out_dims) &
        bind(c, name="bb_exchange_float")
      import :: c_int, c_char, c_ptr
      character(kind=c_char), intent(in) :: call(*)
      type(c_ptr), value :: in, out
      integer(c_int), value :: in_rank, out_rank
      integer(c_int), intent(in) :: in_dims(*), out_dims(*)
    end function
    subroutine c_columns(on) bind(c, name="bb_columns")
      import :: c_int
      integer(c_int), value :: on
    end subroutine
    subroutine bb_close() bind(c, name="bb_close")
    end subroutine
  end interface

  interface bb_exchange
    module procedure exchange_double_0, exchange_double_1, exchange_double_2, exchange_double_3, exchange_double_4
    module procedure exchange_float_0, exchange_float_1, exchange_float_2, exchange_float_3, exchange_float_4
  end interface

  interface bb_put
    module procedure put_double_0, put_double_1, put_double_2, put_double_3, put_double_4
    module procedure put_float_0, put_float_1, put_float_2, put_float_3, put_float_4
    module procedure put_int_0, put_int_1, put_int_2, put_int_3, put_int_4
  end interface

  interface bb_put_part
    module procedure put_part_double_1, put_part_double_2, put_part_double_3, put_part_double_4
    module procedure put_part_float_1, put_part_float_2, put_part_float_3, put_part_float_4
  end interface

  interface bb_get
    module procedure get_double_0, get_double_1, get_double_2, get_double_3, get_double_4
    module procedure get_float_0, get_float_1, get_float_2, get_float_3, get_float_4
  end interface

  interface bb_output
    module procedure output_double_0, output_double_1, output_double_2, output_double_3, output_double_4
    module procedure output_float_0, output_float_1, output_float_2, output_float_3, output_float_4
    module procedure output_int_0, output_int_1, output_int_2, output_int_3, output_int_4
  end interface

contains

  ! Connect, if a trainer has started the program; whether it has. The others call it by themselves.
  logical function bb_open()
    bb_open = c_open() /= 0
  end function

  ! Connect as one of several processes (ranks of MPI) that each ask with their part: rank 0 to size - 1.
  logical function bb_open_part(rank, size)
    integer, intent(in) :: rank, size
    bb_open_part = c_open_part(int(rank, c_int), int(size, c_int)) /= 0
  end function

  ! Ask with what was put; whether it was answered.
  logical function bb_call(name)
    character(*), intent(in) :: name
    call c_columns(1_c_int)
    bb_call = c_call(trim(name) // c_null_char) /= 0
  end function

  logical function exchange_double_0(name, in, out) result(done)
    character(*), intent(in) :: name
    real(c_double), intent(in), target :: in
    real(c_double), intent(inout), target :: out
    call c_columns(1_c_int)
    done = c_exchange(trim(name) // c_null_char, c_loc(in), 0_c_int, shape(in, c_int), c_loc(out), 0_c_int, &
      shape(out, c_int)) /= 0
  end function

  logical function exchange_double_1(name, in, out) result(done)
    character(*), intent(in) :: name
    real(c_double), intent(in), target, contiguous :: in(:)
    real(c_double), intent(inout), target, contiguous :: out(:)
    call c_columns(1_c_int)
    done = c_exchange(trim(name) // c_null_char, c_loc(in), 1_c_int, shape(in, c_int), c_loc(out), 1_c_int, &
      shape(out, c_int)) /= 0
  end function

  logical function exchange_double_2(name, in, out) result(done)
    character(*), intent(in) :: name
    real(c_double), intent(in), target, contiguous :: in(:, :)
    real(c_double), intent(inout), target, contiguous :: out(:, :)
    call c_columns(1_c_int)
    done = c_exchange(trim(name) // c_null_char, c_loc(in), 2_c_int, shape(in, c_int), c_loc(out), 2_c_int, &
      shape(out, c_int)) /= 0
  end function

  logical function exchange_double_3(name, in, out) result(done)
    character(*), intent(in) :: name
    real(c_double), intent(in), target, contiguous :: in(:, :, :)
    real(c_double), intent(inout), target, contiguous :: out(:, :, :)
    call c_columns(1_c_int)
    done = c_exchange(trim(name) // c_null_char, c_loc(in), 3_c_int, shape(in, c_int), c_loc(out), 3_c_int, &
      shape(out, c_int)) /= 0
  end function

  logical function exchange_double_4(name, in, out) result(done)
    character(*), intent(in) :: name
    real(c_double), intent(in), target, contiguous :: in(:, :, :, :)
    real(c_double), intent(inout), target, contiguous :: out(:, :, :, :)
    call c_columns(1_c_int)
    done = c_exchange(trim(name) // c_null_char, c_loc(in), 4_c_int, shape(in, c_int), c_loc(out), 4_c_int, &
      shape(out, c_int)) /= 0
  end function

  logical function exchange_float_0(name, in, out) result(done)
    character(*), intent(in) :: name
    real(c_float), intent(in), target :: in
    real(c_float), intent(inout), target :: out
    call c_columns(1_c_int)
    done = c_exchange_float(trim(name) // c_null_char, c_loc(in), 0_c_int, shape(in, c_int), c_loc(out), 0_c_int, &
      shape(out, c_int)) /= 0
  end function

  logical function exchange_float_1(name, in, out) result(done)
    character(*), intent(in) :: name
    real(c_float), intent(in), target, contiguous :: in(:)
    real(c_float), intent(inout), target, contiguous :: out(:)
    call c_columns(1_c_int)
    done = c_exchange_float(trim(name) // c_null_char, c_loc(in), 1_c_int, shape(in, c_int), c_loc(out), 1_c_int, &
      shape(out, c_int)) /= 0
  end function

  logical function exchange_float_2(name, in, out) result(done)
    character(*), intent(in) :: name
    real(c_float), intent(in), target, contiguous :: in(:, :)
    real(c_float), intent(inout), target, contiguous :: out(:, :)
    call c_columns(1_c_int)
    done = c_exchange_float(trim(name) // c_null_char, c_loc(in), 2_c_int, shape(in, c_int), c_loc(out), 2_c_int, &
      shape(out, c_int)) /= 0
  end function

  logical function exchange_float_3(name, in, out) result(done)
    character(*), intent(in) :: name
    real(c_float), intent(in), target, contiguous :: in(:, :, :)
    real(c_float), intent(inout), target, contiguous :: out(:, :, :)
    call c_columns(1_c_int)
    done = c_exchange_float(trim(name) // c_null_char, c_loc(in), 3_c_int, shape(in, c_int), c_loc(out), 3_c_int, &
      shape(out, c_int)) /= 0
  end function

  logical function exchange_float_4(name, in, out) result(done)
    character(*), intent(in) :: name
    real(c_float), intent(in), target, contiguous :: in(:, :, :, :)
    real(c_float), intent(inout), target, contiguous :: out(:, :, :, :)
    call c_columns(1_c_int)
    done = c_exchange_float(trim(name) // c_null_char, c_loc(in), 4_c_int, shape(in, c_int), c_loc(out), 4_c_int, &
      shape(out, c_int)) /= 0
  end function

  subroutine put_double_0(name, array)
    character(*), intent(in) :: name
    real(c_double), intent(in), target :: array
    call c_columns(1_c_int)
    call c_put(trim(name) // c_null_char, of_double, 0_c_int, shape(array, c_int), c_loc(array))
  end subroutine

  subroutine put_double_1(name, array)
    character(*), intent(in) :: name
    real(c_double), intent(in), target, contiguous :: array(:)
    call c_columns(1_c_int)
    call c_put(trim(name) // c_null_char, of_double, 1_c_int, shape(array, c_int), c_loc(array))
  end subroutine

  subroutine put_double_2(name, array)
    character(*), intent(in) :: name
    real(c_double), intent(in), target, contiguous :: array(:, :)
    call c_columns(1_c_int)
    call c_put(trim(name) // c_null_char, of_double, 2_c_int, shape(array, c_int), c_loc(array))
  end subroutine

  subroutine put_double_3(name, array)
    character(*), intent(in) :: name
    real(c_double), intent(in), target, contiguous :: array(:, :, :)
    call c_columns(1_c_int)
    call c_put(trim(name) // c_null_char, of_double, 3_c_int, shape(array, c_int), c_loc(array))
  end subroutine

  subroutine put_double_4(name, array)
    character(*), intent(in) :: name
    real(c_double), intent(in), target, contiguous :: array(:, :, :, :)
    call c_columns(1_c_int)
    call c_put(trim(name) // c_null_char, of_double, 4_c_int, shape(array, c_int), c_loc(array))
  end subroutine

  subroutine put_float_0(name, array)
    character(*), intent(in) :: name
    real(c_float), intent(in), target :: array
    call c_columns(1_c_int)
    call c_put(trim(name) // c_null_char, of_float, 0_c_int, shape(array, c_int), c_loc(array))
  end subroutine

  subroutine put_float_1(name, array)
    character(*), intent(in) :: name
    real(c_float), intent(in), target, contiguous :: array(:)
    call c_columns(1_c_int)
    call c_put(trim(name) // c_null_char, of_float, 1_c_int, shape(array, c_int), c_loc(array))
  end subroutine

  subroutine put_float_2(name, array)
    character(*), intent(in) :: name
    real(c_float), intent(in), target, contiguous :: array(:, :)
    call c_columns(1_c_int)
    call c_put(trim(name) // c_null_char, of_float, 2_c_int, shape(array, c_int), c_loc(array))
  end subroutine

  subroutine put_float_3(name, array)
    character(*), intent(in) :: name
    real(c_float), intent(in), target, contiguous :: array(:, :, :)
    call c_columns(1_c_int)
    call c_put(trim(name) // c_null_char, of_float, 3_c_int, shape(array, c_int), c_loc(array))
  end subroutine

  subroutine put_float_4(name, array)
    character(*), intent(in) :: name
    real(c_float), intent(in), target, contiguous :: array(:, :, :, :)
    call c_columns(1_c_int)
    call c_put(trim(name) // c_null_char, of_float, 4_c_int, shape(array, c_int), c_loc(array))
  end subroutine

  subroutine put_int_0(name, array)
    character(*), intent(in) :: name
    integer(c_int), intent(in), target :: array
    call c_columns(1_c_int)
    call c_put(trim(name) // c_null_char, of_int, 0_c_int, shape(array, c_int), c_loc(array))
  end subroutine

  subroutine put_int_1(name, array)
    character(*), intent(in) :: name
    integer(c_int), intent(in), target, contiguous :: array(:)
    call c_columns(1_c_int)
    call c_put(trim(name) // c_null_char, of_int, 1_c_int, shape(array, c_int), c_loc(array))
  end subroutine

  subroutine put_int_2(name, array)
    character(*), intent(in) :: name
    integer(c_int), intent(in), target, contiguous :: array(:, :)
    call c_columns(1_c_int)
    call c_put(trim(name) // c_null_char, of_int, 2_c_int, shape(array, c_int), c_loc(array))
  end subroutine

  subroutine put_int_3(name, array)
    character(*), intent(in) :: name
    integer(c_int), intent(in), target, contiguous :: array(:, :, :)
    call c_columns(1_c_int)
    call c_put(trim(name) // c_null_char, of_int, 3_c_int, shape(array, c_int), c_loc(array))
  end subroutine

  subroutine put_int_4(name, array)
    character(*), intent(in) :: name
    integer(c_int), intent(in), target, contiguous :: array(:, :, :, :)
    call c_columns(1_c_int)
    call c_put(trim(name) // c_null_char, of_int, 4_c_int, shape(array, c_int), c_loc(array))
  end subroutine

  ! A process's part of an array: where it begins in the whole, counted from 1, and the shape of the whole.
  subroutine put_part_double_1(name, array, first, whole)
    character(*), intent(in) :: name
    real(c_double), intent(in), target, contiguous :: array(:)
    integer, intent(in) :: first(1), whole(1)
    call c_columns(1_c_int)
    call c_put_part(trim(name) // c_null_char, of_double, 1_c_int, shape(array, c_int), int(first - 1, c_int), &
      int(whole, c_int), c_loc(array))
  end subroutine

  subroutine put_part_double_2(name, array, first, whole)
    character(*), intent(in) :: name
    real(c_double), intent(in), target, contiguous :: array(:, :)
    integer, intent(in) :: first(2), whole(2)
    call c_columns(1_c_int)
    call c_put_part(trim(name) // c_null_char, of_double, 2_c_int, shape(array, c_int), int(first - 1, c_int), &
      int(whole, c_int), c_loc(array))
  end subroutine

  subroutine put_part_double_3(name, array, first, whole)
    character(*), intent(in) :: name
    real(c_double), intent(in), target, contiguous :: array(:, :, :)
    integer, intent(in) :: first(3), whole(3)
    call c_columns(1_c_int)
    call c_put_part(trim(name) // c_null_char, of_double, 3_c_int, shape(array, c_int), int(first - 1, c_int), &
      int(whole, c_int), c_loc(array))
  end subroutine

  subroutine put_part_double_4(name, array, first, whole)
    character(*), intent(in) :: name
    real(c_double), intent(in), target, contiguous :: array(:, :, :, :)
    integer, intent(in) :: first(4), whole(4)
    call c_columns(1_c_int)
    call c_put_part(trim(name) // c_null_char, of_double, 4_c_int, shape(array, c_int), int(first - 1, c_int), &
      int(whole, c_int), c_loc(array))
  end subroutine

  subroutine put_part_float_1(name, array, first, whole)
    character(*), intent(in) :: name
    real(c_float), intent(in), target, contiguous :: array(:)
    integer, intent(in) :: first(1), whole(1)
    call c_columns(1_c_int)
    call c_put_part(trim(name) // c_null_char, of_float, 1_c_int, shape(array, c_int), int(first - 1, c_int), &
      int(whole, c_int), c_loc(array))
  end subroutine

  subroutine put_part_float_2(name, array, first, whole)
    character(*), intent(in) :: name
    real(c_float), intent(in), target, contiguous :: array(:, :)
    integer, intent(in) :: first(2), whole(2)
    call c_columns(1_c_int)
    call c_put_part(trim(name) // c_null_char, of_float, 2_c_int, shape(array, c_int), int(first - 1, c_int), &
      int(whole, c_int), c_loc(array))
  end subroutine

  subroutine put_part_float_3(name, array, first, whole)
    character(*), intent(in) :: name
    real(c_float), intent(in), target, contiguous :: array(:, :, :)
    integer, intent(in) :: first(3), whole(3)
    call c_columns(1_c_int)
    call c_put_part(trim(name) // c_null_char, of_float, 3_c_int, shape(array, c_int), int(first - 1, c_int), &
      int(whole, c_int), c_loc(array))
  end subroutine

  subroutine put_part_float_4(name, array, first, whole)
    character(*), intent(in) :: name
    real(c_float), intent(in), target, contiguous :: array(:, :, :, :)
    integer, intent(in) :: first(4), whole(4)
    call c_columns(1_c_int)
    call c_put_part(trim(name) // c_null_char, of_float, 4_c_int, shape(array, c_int), int(first - 1, c_int), &
      int(whole, c_int), c_loc(array))
  end subroutine

  subroutine get_double_0(name, array)
    character(*), intent(in) :: name
    real(c_double), intent(inout), target :: array
    call c_columns(1_c_int)
    call c_get(trim(name) // c_null_char, of_double, 0_c_int, shape(array, c_int), c_loc(array))
  end subroutine

  subroutine get_double_1(name, array)
    character(*), intent(in) :: name
    real(c_double), intent(inout), target, contiguous :: array(:)
    call c_columns(1_c_int)
    call c_get(trim(name) // c_null_char, of_double, 1_c_int, shape(array, c_int), c_loc(array))
  end subroutine

  subroutine get_double_2(name, array)
    character(*), intent(in) :: name
    real(c_double), intent(inout), target, contiguous :: array(:, :)
    call c_columns(1_c_int)
    call c_get(trim(name) // c_null_char, of_double, 2_c_int, shape(array, c_int), c_loc(array))
  end subroutine

  subroutine get_double_3(name, array)
    character(*), intent(in) :: name
    real(c_double), intent(inout), target, contiguous :: array(:, :, :)
    call c_columns(1_c_int)
    call c_get(trim(name) // c_null_char, of_double, 3_c_int, shape(array, c_int), c_loc(array))
  end subroutine

  subroutine get_double_4(name, array)
    character(*), intent(in) :: name
    real(c_double), intent(inout), target, contiguous :: array(:, :, :, :)
    call c_columns(1_c_int)
    call c_get(trim(name) // c_null_char, of_double, 4_c_int, shape(array, c_int), c_loc(array))
  end subroutine

  subroutine get_float_0(name, array)
    character(*), intent(in) :: name
    real(c_float), intent(inout), target :: array
    call c_columns(1_c_int)
    call c_get(trim(name) // c_null_char, of_float, 0_c_int, shape(array, c_int), c_loc(array))
  end subroutine

  subroutine get_float_1(name, array)
    character(*), intent(in) :: name
    real(c_float), intent(inout), target, contiguous :: array(:)
    call c_columns(1_c_int)
    call c_get(trim(name) // c_null_char, of_float, 1_c_int, shape(array, c_int), c_loc(array))
  end subroutine

  subroutine get_float_2(name, array)
    character(*), intent(in) :: name
    real(c_float), intent(inout), target, contiguous :: array(:, :)
    call c_columns(1_c_int)
    call c_get(trim(name) // c_null_char, of_float, 2_c_int, shape(array, c_int), c_loc(array))
  end subroutine

  subroutine get_float_3(name, array)
    character(*), intent(in) :: name
    real(c_float), intent(inout), target, contiguous :: array(:, :, :)
    call c_columns(1_c_int)
    call c_get(trim(name) // c_null_char, of_float, 3_c_int, shape(array, c_int), c_loc(array))
  end subroutine

  subroutine get_float_4(name, array)
    character(*), intent(in) :: name
    real(c_float), intent(inout), target, contiguous :: array(:, :, :, :)
    call c_columns(1_c_int)
    call c_get(trim(name) // c_null_char, of_float, 4_c_int, shape(array, c_int), c_loc(array))
  end subroutine

  subroutine output_double_0(name, array)
    character(*), intent(in) :: name
    real(c_double), intent(in), target :: array
    call c_columns(1_c_int)
    call c_output(trim(name) // c_null_char, of_double, 0_c_int, shape(array, c_int), c_loc(array))
  end subroutine

  subroutine output_double_1(name, array)
    character(*), intent(in) :: name
    real(c_double), intent(in), target, contiguous :: array(:)
    call c_columns(1_c_int)
    call c_output(trim(name) // c_null_char, of_double, 1_c_int, shape(array, c_int), c_loc(array))
  end subroutine

  subroutine output_double_2(name, array)
    character(*), intent(in) :: name
    real(c_double), intent(in), target, contiguous :: array(:, :)
    call c_columns(1_c_int)
    call c_output(trim(name) // c_null_char, of_double, 2_c_int, shape(array, c_int), c_loc(array))
  end subroutine

  subroutine output_double_3(name, array)
    character(*), intent(in) :: name
    real(c_double), intent(in), target, contiguous :: array(:, :, :)
    call c_columns(1_c_int)
    call c_output(trim(name) // c_null_char, of_double, 3_c_int, shape(array, c_int), c_loc(array))
  end subroutine

  subroutine output_double_4(name, array)
    character(*), intent(in) :: name
    real(c_double), intent(in), target, contiguous :: array(:, :, :, :)
    call c_columns(1_c_int)
    call c_output(trim(name) // c_null_char, of_double, 4_c_int, shape(array, c_int), c_loc(array))
  end subroutine

  subroutine output_float_0(name, array)
    character(*), intent(in) :: name
    real(c_float), intent(in), target :: array
    call c_columns(1_c_int)
    call c_output(trim(name) // c_null_char, of_float, 0_c_int, shape(array, c_int), c_loc(array))
  end subroutine

  subroutine output_float_1(name, array)
    character(*), intent(in) :: name
    real(c_float), intent(in), target, contiguous :: array(:)
    call c_columns(1_c_int)
    call c_output(trim(name) // c_null_char, of_float, 1_c_int, shape(array, c_int), c_loc(array))
  end subroutine

  subroutine output_float_2(name, array)
    character(*), intent(in) :: name
    real(c_float), intent(in), target, contiguous :: array(:, :)
    call c_columns(1_c_int)
    call c_output(trim(name) // c_null_char, of_float, 2_c_int, shape(array, c_int), c_loc(array))
  end subroutine

  subroutine output_float_3(name, array)
    character(*), intent(in) :: name
    real(c_float), intent(in), target, contiguous :: array(:, :, :)
    call c_columns(1_c_int)
    call c_output(trim(name) // c_null_char, of_float, 3_c_int, shape(array, c_int), c_loc(array))
  end subroutine

  subroutine output_float_4(name, array)
    character(*), intent(in) :: name
    real(c_float), intent(in), target, contiguous :: array(:, :, :, :)
    call c_columns(1_c_int)
    call c_output(trim(name) // c_null_char, of_float, 4_c_int, shape(array, c_int), c_loc(array))
  end subroutine

  subroutine output_int_0(name, array)
    character(*), intent(in) :: name
    integer(c_int), intent(in), target :: array
    call c_columns(1_c_int)
    call c_output(trim(name) // c_null_char, of_int, 0_c_int, shape(array, c_int), c_loc(array))
  end subroutine

  subroutine output_int_1(name, array)
    character(*), intent(in) :: name
    integer(c_int), intent(in), target, contiguous :: array(:)
    call c_columns(1_c_int)
    call c_output(trim(name) // c_null_char, of_int, 1_c_int, shape(array, c_int), c_loc(array))
  end subroutine

  subroutine output_int_2(name, array)
    character(*), intent(in) :: name
    integer(c_int), intent(in), target, contiguous :: array(:, :)
    call c_columns(1_c_int)
    call c_output(trim(name) // c_null_char, of_int, 2_c_int, shape(array, c_int), c_loc(array))
  end subroutine

  subroutine output_int_3(name, array)
    character(*), intent(in) :: name
    integer(c_int), intent(in), target, contiguous :: array(:, :, :)
    call c_columns(1_c_int)
    call c_output(trim(name) // c_null_char, of_int, 3_c_int, shape(array, c_int), c_loc(array))
  end subroutine

  subroutine output_int_4(name, array)
    character(*), intent(in) :: name
    integer(c_int), intent(in), target, contiguous :: array(:, :, :, :)
    call c_columns(1_c_int)
    call c_output(trim(name) // c_null_char, of_int, 4_c_int, shape(array, c_int), c_loc(array))
  end subroutine

end module
