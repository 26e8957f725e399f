import { describe, expect, test } from 'vitest'
import { Device, type DeviceName } from '../../lib/core/index.js'
import { native } from '../../lib/core/native.js'
import { DeviceError, RequestError, StateError } from '../../lib/errors.js'
import { expectError } from '../helpers/expect-error.js'

const device = Device.open()

describe('Device', () => {
  test('auto is the CPU', () => {
    expect(device.name).toBe('cpu')
    expect(Device.open('cpu').name).toBe('cpu')
    expect(Device.physicalCores()).toBeGreaterThanOrEqual(1)
  })

  test('a GPU that is not there, and a name that none has', async () => {
    expect(await expectError(() => Device.open('cuda:0'), 'NO_DEVICE', 'cuda:0')).toBeInstanceOf(DeviceError)
    for (const name of ['gpu', 'cuda:', 'cuda:x', '', 'cpu:0', 'Cpu']) {
      const error = await expectError(() => Device.open(name as DeviceName), 'INVALID_OPTION', `'${name}'`)
      expect(error).toBeInstanceOf(RequestError)
      expect(error.details).toEqual({ option: 'device' })
    }
  })

  test('counts what is allocated, all handles of a device together', () => {
    const before = device.memory().allocated
    const buffers = [device.buffer(1 << 20), Device.open('cpu').buffer(100)]
    expect(device.memory().allocated - before).toBe((1 << 20) + 4096)
    expect(Device.open('cpu').memory().allocated).toBe(device.memory().allocated)
    expect(device.memory().available).toBeGreaterThan(1 << 20)
    for (const buffer of buffers) buffer.dispose()
    expect(device.memory().allocated).toBe(before)
  })

  test('memory that no machine has', async () => {
    const before = device.memory().allocated
    expect(await expectError(() => device.buffer(2 ** 52), 'OUT_OF_MEMORY', String(2 ** 52))).toBeInstanceOf(
      DeviceError,
    )
    const shape = {
      format: 'nvfp4',
      layout: 'panels',
      matrices: 2 ** 31 - 1,
      out: 2 ** 31 - 1,
      in: 2 ** 31 - 16,
    } as const
    await expectError(() => device.weight(shape), 'OUT_OF_MEMORY', 'matrices of')
    expect(device.memory().allocated).toBe(before)
  })

  test.each([-1, 1.5, Number.NaN, Number.POSITIVE_INFINITY, 2 ** 60])('a buffer of %s bytes', async (bytes) => {
    await expectError(() => device.buffer(bytes), 'INVALID_OPTION', '`bytes`')
  })
})

describe('Buffer and Weight', () => {
  test('tensors lie inside their buffer', async () => {
    using buffer = device.buffer(64)
    expect(buffer.tensor('f32', [2, 8]).bytes).toBe(64)
    expect(buffer.tensor('e4m3', [60], 4).describe()).toBe('e4m3 [60]')
    await expectError(() => buffer.tensor('f32', [17]), 'INVALID_OPTION', 'f32 [17]', '64 bytes')
    await expectError(() => buffer.tensor('f32', [16], 4), 'INVALID_OPTION', 'offset 4')
    expect(buffer.tensor('bf16', [4, 2]).size(-1)).toBe(2)
    await expectError(() => buffer.tensor('bf16', [4, 2]).size(2), 'INVALID_OPTION', 'no dimension 2')
  })

  test('weights that cannot be', async () => {
    const shape = { format: 'nvfp4', layout: 'rows', out: 4, in: 32 } as const
    using weight = device.weight(shape)
    expect(weight.bytes).toBeGreaterThan((4 * 32) / 2)
    await expectError(() => device.weight({ ...shape, in: 40 }), 'INVALID_OPTION', 'blocks of 16')
    await expectError(() => device.weight({ ...shape, out: 0 }), 'INVALID_OPTION', 'at least one')
    await expectError(() => device.weight({ ...shape, out: 2 ** 31 }), 'INVALID_OPTION', '`out`')
    await expectError(() => device.weight({ ...shape, format: 'q4' as 'f32' }), 'INVALID_OPTION', "'q4'")
    await expectError(() => device.weight({ ...shape, layout: 'tiles' as 'rows' }), 'INVALID_OPTION', "'tiles'")
  })

  test('a disposed one is an error of its own kind, and disposing twice is none', async () => {
    const buffer = device.buffer(64)
    const weight = device.weight({ format: 'f32', layout: 'rows', out: 1, in: 4 })
    const stream = device.stream({ threads: 1 })
    for (const object of [buffer, weight]) {
      object.dispose()
      object.dispose()
    }
    const error = await expectError(() => stream.read(buffer.tensor('f32', [1])), 'DISPOSED', 'buffer')
    expect(error).toBeInstanceOf(StateError)
    using x = device.buffer(64)
    stream.fit(() => stream.linear(x.tensor('f32', [4, 4]), weight))
    await expectError(() => stream.scope(() => stream.linear(x.tensor('f32', [4, 4]), weight)), 'DISPOSED', 'weight')
    stream.dispose()
    stream.dispose()
    await expectError(() => stream.sync(), 'DISPOSED', 'stream')
  })
})

describe('handles', () => {
  test('a wrong one is an error that names what was expected', async () => {
    const binding = native()
    using buffer = device.buffer(64)
    using stream = device.stream({ threads: 1 })
    const wrong = [undefined, null, 1, 'cpu', {}, [], () => {}, device.handle, buffer.handle, stream.handle]
    const not = (handle: unknown) => wrong.filter((value) => value !== handle) as never[]
    for (const handle of not(device.handle))
      await expectError(() => binding.createBuffer(handle, 1), 'INVALID_OPTION', 'a device')
    for (const handle of not(buffer.handle))
      await expectError(() => binding.disposeBuffer(handle), 'INVALID_OPTION', 'a buffer')
    for (const handle of not(stream.handle)) await expectError(() => binding.sync(handle), 'INVALID_OPTION', 'a stream')
    for (const handle of wrong as never[]) {
      await expectError(() => binding.weightStorage(handle), 'INVALID_OPTION', 'a weight')
      await expectError(() => binding.disposeGraph(handle), 'INVALID_OPTION', 'a graph')
      await expectError(() => binding.disposeFile(handle), 'INVALID_OPTION', 'a file')
      await expectError(() => binding.cancel(handle), 'INVALID_OPTION', 'a cancel flag')
      await expectError(() => binding.read(stream.handle, handle), 'INVALID_OPTION')
      await expectError(() => binding.launch(stream.handle, handle, new Uint8Array(4), undefined), 'INVALID_OPTION')
    }
    await stream.sync()
  })

  test('native calls with other arguments than they take', async () => {
    const binding = native()
    using buffer = device.buffer(64)
    using stream = device.stream({ threads: 1 })
    const tensor = (...rest: unknown[]) => [buffer.handle, ...rest] as never
    for (const given of [
      tensor(),
      tensor(0),
      tensor(0, 'f32', -1),
      tensor(0, 'f32', 0),
      tensor(0, 'f32', 1.5),
      tensor(0, 'f64', 1),
      tensor(0, 'f32', 17),
      tensor(64, 'f32', 1),
      tensor(0, 'f32', 2 ** 40, 2 ** 40),
      tensor(0, 'f32', 2 ** 52, 0),
      tensor('0', 'f32', 1),
    ]) {
      await expectError(() => binding.read(stream.handle, given), 'INVALID_OPTION')
    }
    await expectError(
      () => binding.write(stream.handle, tensor(0, 'f32', 2), new Uint8Array(4)),
      'INVALID_OPTION',
      '8 bytes',
    )
    await expectError(
      () => binding.write(stream.handle, tensor(0, 'f32', 1), [1] as never),
      'INVALID_OPTION',
      'typed array',
    )
    await expectError(() => binding.enqueue(stream.handle, 99, [], []), 'INVALID_OPTION', 'no op 99')
    await expectError(() => binding.enqueue(stream.handle, 0, 'x' as never, []), 'INVALID_OPTION')
    await expectError(() => binding.createStream(device.handle, 0), 'INVALID_OPTION', '`threads`')
    await expectError(() => binding.createStream(device.handle, 2000), 'INVALID_OPTION', '`threads`')
    await stream.sync()
  })
})
