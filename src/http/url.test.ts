import { expect, test } from 'bun:test'
import { splitUrl } from './url.ts'

test.each([
  ['http://localhost:4400/a/b?c=d#e', 'localhost:4400', '/a/b', '?c=d'],
  ['http://[::1]/%2e%2e/a//b', '[::1]', '/%2e%2e/a//b', ''],
  ['http://host', 'host', '/', ''],
  ['http://host?a=/b', 'host', '/', '?a=/b'],
  ['http://host#/a?b', 'host', '/', ''],
  ['http://host/a#b?c', 'host', '/a', ''],
  ['http://host/a?b=http://other/', 'host', '/a', '?b=http://other/'],
  ['/a?b=http://other/', null, '/a', '?b=http://other/'],
])('%s is split as it was sent', (url, authority, path, search) => {
  expect(splitUrl(url)).toEqual({ authority, path, search })
})
