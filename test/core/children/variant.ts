// Prints the variant of the CPU kernels, or fails with the code of the error.
import { Device } from '../../../lib/core/index.js'

console.log(Device.cpuVariant())
