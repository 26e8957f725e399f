// Drops objects without dispose(), one of each kind; prints the warnings and the memory as JSON. Needs --expose-gc.
import { setTimeout as wait } from 'node:timers/promises'
import { Device } from '../../../lib/core/index.js'

const device = Device.open('cpu')
const before = device.memory().allocated
const warnings: string[] = []
process.on('warning', (warning) => warnings.push(`${(warning as NodeJS.ErrnoException).code}: ${warning.message}`))

function drop(): void {
  for (let i = 0; i < 3; i++) device.buffer(1 << 20)
  device.weight({ format: 'f32', layout: 'rows', out: 64, in: 64 })
  const stream = device.stream({ threads: 1 })
  stream.capture(() => undefined)
  // Disposed of: no warning.
  device.buffer(1 << 20).dispose()
}

const kept = device.buffer(4096)
drop()
for (let i = 0; i < 50 && device.memory().allocated > before + 4096; i++) {
  globalThis.gc?.()
  await wait(10)
}
const after = device.memory().allocated
kept.dispose()
console.log(JSON.stringify({ before, after, warnings }))
