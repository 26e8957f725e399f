import type { NativeDraw } from '../core/native.js'

/** What the elements of a tensor are drawn from: kernels/synthetic/draw.h. */
export interface DrawTable {
  readonly draw: NativeDraw
  /** Elements come in pairs of opposite sign. */
  readonly alternate: boolean
  readonly entries: Uint8Array
}

const wideEntries = 4096
const narrowEntries = 256

/** Φ(x), the standard normal distribution function, by the series of Marsaglia (2004); for |x| below 6. */
export function normalCdf(x: number): number {
  let term = x
  let sum = x
  for (let n = 3; Math.abs(term) > 1e-17; n += 2) {
    term *= (x * x) / n
    sum += term
  }
  return 0.5 + (sum * Math.exp(-0.5 * x * x)) / Math.sqrt(2 * Math.PI)
}

/** Φ⁻¹(p), for p from 1e-6 to 1 - 1e-6, by Newton's method, which climbs to it from the middle. */
export function normalQuantile(p: number): number {
  if (p < 0.5) return -normalQuantile(1 - p)
  let x = 0
  for (let i = 0; i < 50; i++) {
    const step = (p - normalCdf(x)) * Math.sqrt(2 * Math.PI) * Math.exp(0.5 * x * x)
    x += step
    if (Math.abs(step) < 1e-12) break
  }
  return x
}

/** The middles of `count` equally likely parts of the standard normal distribution. */
function normalQuantiles(count: number): Float64Array {
  return Float64Array.from({ length: count }, (_, i) => normalQuantile((i + 0.5) / count))
}

const quantiles = new Map<number, Float64Array>()

function quantilesOf(count: number): Float64Array {
  let found = quantiles.get(count)
  if (found === undefined) {
    found = normalQuantiles(count)
    quantiles.set(count, found)
  }
  return found
}

function bf16Bits(value: number): number {
  const bits = new Uint32Array(Float32Array.of(value).buffer)[0] as number
  return (bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16
}

function elements(dtype: 'BF16' | 'F32', values: Float64Array, alternate: boolean): DrawTable {
  if (dtype === 'F32') {
    return { draw: 'words', alternate, entries: new Uint8Array(Float32Array.from(values).buffer) }
  }
  return { draw: 'halves', alternate, entries: new Uint8Array(Uint16Array.from(values, bf16Bits).buffer) }
}

/** Normally distributed numbers. With `alternate` every even-sized row sums to zero. */
export function normalTable(
  dtype: 'BF16' | 'F32',
  { mean = 0, deviation, alternate = false }: { mean?: number; deviation: number; alternate?: boolean },
): DrawTable {
  return elements(
    dtype,
    quantilesOf(wideEntries).map((q) => mean + deviation * q),
    alternate,
  )
}

/** Numbers with a given quantile function. */
export function quantileTable(dtype: 'BF16' | 'F32', quantile: (p: number) => number): DrawTable {
  const values = Float64Array.from({ length: wideEntries }, (_, i) => quantile((i + 0.5) / wideEntries))
  return elements(dtype, values, false)
}

/** The same number everywhere. */
export function constantTable(dtype: 'BF16' | 'F32', value: number): DrawTable {
  return elements(dtype, new Float64Array(wideEntries).fill(value), false)
}

const magnitudes = [0, 0.5, 1, 1.5, 2, 3, 4, 6]

function nearestCode(value: number): number {
  let best = 0
  for (let code = 1; code < magnitudes.length; code++) {
    const [a = 0, b = 0] = [magnitudes[best], magnitudes[code]]
    if (Math.abs(Math.abs(value) - b) < Math.abs(Math.abs(value) - a)) best = code
  }
  return value < 0 && best > 0 ? best + 8 : best
}

/** A distribution of e2m1 codes with its exact first two moments. */
export interface Codes {
  readonly codes: Uint8Array
  readonly mean: number
  /** √ of the mean square. */
  readonly rms: number
}

function codesOf(mean: number, deviation: number): Codes {
  const codes = Uint8Array.from(quantilesOf(narrowEntries), (q) => nearestCode(mean + deviation * q))
  let sum = 0
  let squares = 0
  for (const code of codes) {
    const value = (code & 8 ? -1 : 1) * (magnitudes[code & 7] as number)
    sum += value
    squares += value * value
  }
  return { codes, mean: sum / codes.length, rms: Math.sqrt(squares / codes.length) }
}

// A normal block of 16 is scaled so that its largest element, about two deviations, becomes 6.
const codeDeviation = 2.8

/**
 * Codes of normally distributed weights whose mean is `ratio` of their root mean square. Rounding to four bits leaves few
 * means to choose from, so the spread gives way a little where that comes closer.
 */
export function codesWithMean(ratio: number): Codes {
  if (ratio === 0) return codesOf(0, codeDeviation)
  let best: Codes | undefined
  const miss = ({ mean, rms }: Codes) => Math.abs(mean / rms - ratio)
  for (let step = -20; step <= 20; step++) {
    const deviation = codeDeviation * (1 + step / 200)
    let [low, high] = [-6, 6]
    for (let i = 0; i < 24; i++) {
      const middle = (low + high) / 2
      const codes = codesOf(middle, deviation)
      if (best === undefined || miss(codes) < miss(best)) best = codes
      if (codes.mean / codes.rms < ratio) low = middle
      else high = middle
    }
  }
  return best as Codes
}

/** Two codes a byte. */
export function codeTable({ codes }: Codes): DrawTable {
  const entries = new Uint8Array(narrowEntries * narrowEntries)
  for (const [high, code] of codes.entries()) {
    for (let low = 0; low < narrowEntries; low++)
      entries[high * narrowEntries + low] = (code << 4) | (codes[low] as number)
  }
  return { draw: 'pairs', alternate: false, entries }
}

function e4m3Value(bits: number): number {
  const [exponent, fraction] = [bits >> 3, bits & 7]
  return exponent === 0 ? fraction * 2 ** -9 : (1 + fraction / 8) * 2 ** (exponent - 7)
}

/** Block scales and the moments that the size of a product depends on. */
export interface BlockScales {
  readonly table: DrawTable
  readonly mean: number
  readonly rms: number
}

/**
 * Block scales as a matrix of normal weights has them. The largest block of a matrix has 448; the others lie log-normally
 * around a third of that.
 */
export function blockScales(): BlockScales {
  const [median, spread] = [160, 0.25]
  const all = Array.from({ length: 127 }, (_, bits) => e4m3Value(bits))
  const nearest = (value: number) =>
    all.reduce(
      (best, candidate, bits) => (Math.abs(candidate - value) < Math.abs((all[best] as number) - value) ? bits : best),
      0,
    )
  const entries = Uint8Array.from(quantilesOf(narrowEntries), (q) => nearest(median * Math.exp(spread * q)))
  const values = Array.from(entries, e4m3Value)
  const average = (numbers: number[]) => numbers.reduce((sum, value) => sum + value, 0) / numbers.length
  return {
    table: { draw: 'bytes', alternate: false, entries },
    mean: average(values),
    rms: Math.sqrt(average(values.map((value) => value * value))),
  }
}
