import { describe, expect, test } from 'vitest'
import { ChatTemplate } from '../../lib/text/chat-template.js'
import { pythonFloat } from '../../lib/text/python-values.js'
import { strftime } from '../../lib/text/strftime.js'
import { readFixture } from './fixtures.js'

describe('expressions print what Python Jinja2 prints', () => {
  test.each(Object.entries(readFixture<Record<string, string>>('expression-goldens.json')))(
    '%s',
    (source, expected) => {
      expect(ChatTemplate.fromSource(source).render([], { thinking: true }).text).toBe(expected)
    },
  )
})

test.each([
  [0, '0.0'],
  [-0, '-0.0'],
  [1e15, '1000000000000000.0'],
  [1e16, '1e+16'],
  [123456789012345680, '1.2345678901234568e+17'],
  [0.0001, '0.0001'],
  [0.00001, '1e-05'],
  [-1.5e-10, '-1.5e-10'],
  [1e100, '1e+100'],
  [Number.POSITIVE_INFINITY, 'inf'],
  [Number.NaN, 'nan'],
])('repr(%f) is %s', (value, expected) => {
  expect(pythonFloat(value)).toBe(expected)
})

test('strftime writes dates as the C locale does', () => {
  const date = new Date(2026, 0, 5, 15, 4, 9)
  expect(strftime(date, '%A %a %d %B %b %Y %y %m %H:%M:%S %I %p %% %Q')).toBe(
    'Monday Mon 05 January Jan 2026 26 01 15:04:09 03 PM % %Q',
  )
})
