import type { Device } from '../core/device.js'

/** How fast a device reads memory. */
export interface Roofline {
  /** 10⁹ bytes a second, the fastest of `times` reads. */
  gigabytesPerSecond: number
  /** Bytes of one read. */
  bytes: number
}

const mebibyte = 2 ** 20
/** What one measurement reads when memory allows. */
export const rooflineBytes = 4096 * mebibyte
const times = 5

/** The largest power of two of at most 4 GiB that leaves half of what is available, at least 64 MiB. */
function affordable(device: Device): number {
  let bytes = rooflineBytes
  while (bytes > 64 * mebibyte && 2 * bytes > device.memory().available) bytes /= 2
  return bytes
}

/**
 * Measures the read roofline: the best of 5 reads of 4 GiB in huge pages with that many threads, or of less memory when the
 * machine is short of it (`bytes` says how much). Smaller `bytes`, read as often as gives 1 GiB, measure a cache.
 */
export async function measureRoofline(
  device: Device,
  options: { threads?: number; bytes?: number } = {},
): Promise<Roofline> {
  const { threads, bytes = affordable(device) } = options
  const stream = device.stream(threads === undefined ? {} : { threads })
  const size = Math.max(512, Math.floor(bytes / 512) * 512)
  const source = device.buffer(size)
  const result = device.buffer(64)
  try {
    const seconds = result.tensor('f32', [1])
    const repeats = Math.max(times, Math.min(1000, Math.ceil((1024 * mebibyte) / size)))
    stream.measureRead(source.tensor('u8', [size]), seconds, repeats)
    const read = await stream.read(seconds)
    const fastest = new DataView(read.buffer, read.byteOffset).getFloat32(0, true)
    return { gigabytesPerSecond: size / fastest / 1e9, bytes: size }
  } finally {
    stream.dispose()
    source.dispose()
    result.dispose()
  }
}
