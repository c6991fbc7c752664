! The system of Lorenz (1996): slow cells x on a ring, in the model with a closure for what fast cells y do to them.
!
!   lorenz96 truth SEED RECORDS    both scales; prints x every hundredth of a unit of time, after 5 units
!   lorenz96 model START STEPS     x alone, from the numbers in the file START; prints x after each step
!
! The only lines that know of training are the two with bb_host. Started by hand, the model has the closure that
! people had before: a straight line in x, fitted to what the fast cells do in the full system.
program lorenz96
  use, intrinsic :: iso_fortran_env, only: real64
  use bb_host
  implicit none
  integer, parameter :: cells = 8, fast = 32
  real(real64), parameter :: forcing = 20, dt = 0.01d0
  real(real64) :: x(cells), closure(cells), y(cells * fast)
  character(200) :: mode, word
  integer :: number, step, unit

  call get_command_argument(1, mode)
  call get_command_argument(3, word)
  read (word, *) number
  call get_command_argument(2, word)
  if (mode == "truth") then
    call begin(word, x, y)
    do step = 1, 5000 + 10 * (number - 1)
      call both(x, y, dt / 10)
      if (step >= 5000 .and. mod(step, 10) == 0) print '(8es24.16)', x
    end do
  else
    open (newunit=unit, file=trim(word), status="old", action="read")
    read (unit, *) x
    close (unit)
    do step = 1, number
      if (.not. bb_exchange("closure", x, closure)) closure = -0.66d0 - 0.83d0 * x
      call slow(x, closure)
      print '(8es24.16)', x
    end do
  end if

contains

  function rate(x, closure)
    real(real64), intent(in) :: x(:), closure(:)
    real(real64) :: rate(size(x))
    rate = -cshift(x, -1) * (cshift(x, -2) - cshift(x, 1)) - x + forcing + closure
  end function

  subroutine slow(x, closure)
    real(real64), intent(inout) :: x(:)
    real(real64), intent(in) :: closure(:)
    real(real64), dimension(size(x)) :: a, b, c, d
    a = rate(x, closure)
    b = rate(x + dt / 2 * a, closure)
    c = rate(x + dt / 2 * b, closure)
    d = rate(x + dt * c, closure)
    x = x + dt / 6 * (a + 2 * b + 2 * c + d)
  end subroutine

  function fast_rate(x, y)
    real(real64), intent(in) :: x(:), y(:)
    real(real64) :: fast_rate(size(y))
    integer :: k
    fast_rate = -100 * cshift(y, 1) * (cshift(y, 2) - cshift(y, -1)) - 10 * y
    do k = 1, size(y)
      fast_rate(k) = fast_rate(k) + x((k - 1) / fast + 1)
    end do
  end function

  function coupling(y)
    real(real64), intent(in) :: y(:)
    real(real64) :: coupling(size(y) / fast)
    coupling = -sum(reshape(y, [fast, size(y) / fast]), dim=1)
  end function

  subroutine both(x, y, h)
    real(real64), intent(inout) :: x(:), y(:)
    real(real64), intent(in) :: h
    real(real64), dimension(size(x)) :: a, b, c, d
    real(real64), dimension(size(y)) :: p, q, r, s
    a = rate(x, coupling(y)); p = fast_rate(x, y)
    b = rate(x + h / 2 * a, coupling(y + h / 2 * p)); q = fast_rate(x + h / 2 * a, y + h / 2 * p)
    c = rate(x + h / 2 * b, coupling(y + h / 2 * q)); r = fast_rate(x + h / 2 * b, y + h / 2 * q)
    d = rate(x + h * c, coupling(y + h * r)); s = fast_rate(x + h * c, y + h * r)
    x = x + h / 6 * (a + 2 * b + 2 * c + d)
    y = y + h / 6 * (p + 2 * q + 2 * r + s)
  end subroutine

  ! Anything that is another for each seed: five units of time are run before the first record.
  subroutine begin(word, x, y)
    character(*), intent(in) :: word
    real(real64), intent(out) :: x(:), y(:)
    integer :: seed, k
    read (word, *) seed
    do k = 1, size(x)
      x(k) = 10 + 5 * sin(1.7d0 * k + 0.37d0 * seed + 0.013d0 * k * seed)
    end do
    do k = 1, size(y)
      y(k) = 0.1d0 * sin(2.3d0 * k + 0.71d0 * seed)
    end do
  end subroutine
end program
