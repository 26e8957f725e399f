const days = ['Sunday', 'Monday', 'Tuesday', 'Wednesday', 'Thursday', 'Friday', 'Saturday']
const months = 'January February March April May June July August September October November December'.split(' ')

/** Python's `datetime.strftime` in the C locale, for the directives that chat templates use; others stay as they are. */
export function strftime(date: Date, format: string): string {
  const two = (value: number) => String(value).padStart(2, '0')
  const month = months[date.getMonth()] as string
  const day = days[date.getDay()] as string
  const directives: Readonly<Record<string, () => string>> = {
    Y: () => String(date.getFullYear()),
    y: () => two(date.getFullYear() % 100),
    m: () => two(date.getMonth() + 1),
    B: () => month,
    b: () => month.slice(0, 3),
    d: () => two(date.getDate()),
    A: () => day,
    a: () => day.slice(0, 3),
    H: () => two(date.getHours()),
    I: () => two(date.getHours() % 12 || 12),
    p: () => (date.getHours() < 12 ? 'AM' : 'PM'),
    M: () => two(date.getMinutes()),
    S: () => two(date.getSeconds()),
    '%': () => '%',
  }
  return format.replace(/%(.)/g, (text, letter: string) => directives[letter]?.() ?? text)
}
