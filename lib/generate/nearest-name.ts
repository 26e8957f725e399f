/** Edits (insert, delete, replace, swap of neighbours) that turn `a` into `b`. */
function distance(a: string, b: string): number {
  let beforeLast: number[] = []
  let last = Array.from({ length: b.length + 1 }, (_, j) => j)
  for (let i = 1; i <= a.length; i++) {
    const row = [i]
    for (let j = 1; j <= b.length; j++) {
      const same = a[i - 1] === b[j - 1]
      let best = Math.min(row[j - 1]! + 1, last[j]! + 1, last[j - 1]! + (same ? 0 : 1))
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1])
        best = Math.min(best, beforeLast[j - 2]! + 1)
      row.push(best)
    }
    beforeLast = last
    last = row
  }
  return last[b.length]!
}

/**
 * The known name that a misspelled one most likely meant, or `undefined` when none is close: at most a third of its
 * letters wrong, or one name the beginning of the other. Case, `-` and `_` do not count.
 *
 * @example
 * nearestName('temprature', ['temperature', 'topK']) // 'temperature'
 */
export function nearestName(name: string, known: readonly string[]): string | undefined {
  const plain = (text: string) => text.toLowerCase().replaceAll(/[-_]/g, '')
  const wanted = plain(name)
  let best: string | undefined
  let bestDistance = Number.POSITIVE_INFINITY
  for (const candidate of known) {
    const other = plain(candidate)
    const prefix = wanted.length >= 3 && (other.startsWith(wanted) || wanted.startsWith(other))
    const edits = prefix ? 0.5 : distance(wanted, other)
    if (edits < bestDistance && (prefix || edits <= Math.max(1, Math.floor(wanted.length / 3)))) {
      best = candidate
      bestDistance = edits
    }
  }
  return best
}
