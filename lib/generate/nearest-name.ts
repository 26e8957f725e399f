/** Edits (insert, delete, replace, swap of neighbours) that turn `a` into `b`. */
function distance(a: string, b: string): number {
  const rows: number[][] = [Array.from({ length: b.length + 1 }, (_, j) => j)]
  const at = (i: number, j: number) => rows[i]?.[j] ?? Number.POSITIVE_INFINITY
  for (let i = 1; i <= a.length; i++) {
    const row = [i]
    rows.push(row)
    for (let j = 1; j <= b.length; j++) {
      const replaced = at(i - 1, j - 1) + (a[i - 1] === b[j - 1] ? 0 : 1)
      const swapped = a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1] ? at(i - 2, j - 2) + 1 : replaced
      row.push(Math.min(at(i, j - 1) + 1, at(i - 1, j) + 1, replaced, swapped))
    }
  }
  return at(a.length, b.length)
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
