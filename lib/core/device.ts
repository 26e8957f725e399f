import { NibbletError, RequestError } from '../errors.js'
import { Buffer } from './buffer.js'
import { type Handle, native } from './native.js'
import { Stream, type StreamOptions } from './stream.js'
import { Weight, type WeightShape } from './weight.js'

/** What `device` options accept. `auto` is the best device present, `cuda` the first GPU. */
export type DeviceName = 'auto' | 'cpu' | 'cuda' | `cuda:${number}`

/**
 * A processor: the host CPU or a GPU, shared by all its users in the process.
 *
 * @example
 * const device = Device.open('cpu')
 * const stream = device.stream({ threads: 2 })
 */
export class Device {
  readonly name: string
  /** @internal */
  readonly handle: Handle<'device'>

  private constructor(name: string) {
    this.handle = native().openDevice(name)
    this.name = name
  }

  /**
   * Opens a device. `auto` is the first GPU that this build and this machine both have, otherwise the CPU.
   * @throws RequestError INVALID_OPTION for a name of another form
   * @throws DeviceError NO_DEVICE, saying why, when the device is not there
   */
  static open(name: DeviceName = 'auto'): Device {
    if (!/^(auto|cpu|cuda|cuda:(0|[1-9]\d*))$/.test(name)) {
      throw new RequestError(
        'INVALID_OPTION',
        `expected 'auto', 'cpu', 'cuda' or 'cuda:N' for \`device\`, got '${name}'`,
        { details: { option: 'device' } },
      )
    }
    if (name === 'auto') return Device.#best()
    return new Device(name === 'cuda' ? 'cuda:0' : name)
  }

  static #best(): Device {
    if (Device.cudaDevices() > 0) {
      try {
        return new Device('cuda:0')
      } catch (error) {
        // Such as a GPU that this build holds no machine code for.
        if (!NibbletError.is(error) || error.code !== 'NO_DEVICE') throw error
      }
    }
    return new Device('cpu')
  }

  /** GPUs that this build can use; 0 when it has no GPU code, or the machine no GPU or no driver. */
  static cudaDevices(): number {
    return native().cudaDevices()
  }

  /** Whether this is a GPU. */
  get cuda(): boolean {
    return this.name !== 'cpu'
  }

  /** What the maker calls it: `NVIDIA H100 80GB HBM3`. */
  get model(): string {
    return native().deviceModel(this.handle)
  }

  /** Cores that a stream may use, hyper-threads counted once. */
  static physicalCores(): number {
    return native().physicalCores()
  }

  /** The instruction set that the CPU kernels use: portable, avx2, avx512 or avx512vnni; the environment's NIBBLET_CPU forces one. */
  static cpuVariant(): string {
    return native().cpuVariant()
  }

  /** Bytes: `allocated` by nibblet in this process, `available` to allocate more. */
  memory(): { allocated: number; available: number } {
    return native().deviceMemory(this.handle)
  }

  /** Allocates a zeroed buffer. @throws DeviceError OUT_OF_MEMORY */
  buffer(bytes: number): Buffer {
    return new Buffer(this, bytes)
  }

  /** Allocates a weight, to be filled with `stream.loadWeight`. @throws DeviceError OUT_OF_MEMORY */
  weight(shape: WeightShape): Weight {
    return new Weight(this, shape)
  }

  stream(options: StreamOptions = {}): Stream {
    return new Stream(this, options)
  }
}
