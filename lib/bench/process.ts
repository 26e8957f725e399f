import { readFile, writeFile } from 'node:fs/promises'
import { monitorEventLoopDelay } from 'node:perf_hooks'

/** Milliseconds between two looks at the event loop: often enough to see a stall, seldom enough to cost nothing. */
const resolution = 10

/** Watches how late timers come, from now until the function returned is called. */
export function watchEventLoop(): () => { p50: number; p99: number; max: number } {
  const delay = monitorEventLoopDelay({ resolution })
  delay.enable()
  return () => {
    delay.disable()
    // What is recorded is the time from one look to the next.
    const late = (nanoseconds: number) => (delay.count === 0 ? 0 : Math.max(0, nanoseconds / 1e6 - resolution))
    return { p50: late(delay.percentile(50)), p99: late(delay.percentile(99)), max: late(delay.max) }
  }
}

/** Makes the kernel's mark of the most resident memory start from now; where it cannot, it stays what it was. */
export async function forgetPeak(): Promise<void> {
  await writeFile('/proc/self/clear_refs', '5').catch(() => undefined)
}

/** Most resident memory in bytes, mapped files included; null where the system does not tell. */
export async function peakResident(): Promise<number | null> {
  const kibibytes = await status('VmHWM')
  return kibibytes === null ? null : kibibytes * 1024
}

/** Threads of this process, Node's own included; null where the system does not tell. */
export function processThreads(): Promise<number | null> {
  return status('Threads')
}

async function status(field: string): Promise<number | null> {
  const text = await readFile('/proc/self/status', 'utf8').catch(() => '')
  const value = new RegExp(`^${field}:\\s*(\\d+)`, 'm').exec(text)?.[1]
  return value === undefined ? null : Number(value)
}
