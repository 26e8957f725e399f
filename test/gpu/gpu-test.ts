import { test } from 'vitest'
import { Device } from '../../lib/core/device.js'

/** A test that runs where there is a GPU: `npm run test:gpu`. `npm test` hides GPUs, so that it is the same everywhere. */
export const gpuTest = test.skipIf(Device.cudaDevices() === 0)
