import { stem } from './words.ts'

/**
 * Words that programmers use for the same thing. A question may say one where the code says another; such a match counts
 * less than that of the word itself.
 */
const groups = [
  'auth authentication authenticate login signin logon credential identity',
  'authorization authorize permission access privilege allow grant role acl',
  'delete remove destroy drop erase unlink purge discard',
  'create make build construct add insert new generate',
  'update modify change edit patch alter set mutate',
  'get fetch retrieve load read obtain lookup query',
  'find search lookup locate match query scan',
  'send emit dispatch publish transmit post deliver write',
  'receive accept consume subscribe listen handle',
  'config configuration configure setting option preference',
  'error exception failure fault fail problem',
  'validate validation check verify assert ensure sanitize',
  'parse decode deserialize unmarshal read interpret',
  'serialize encode stringify marshal format dump render',
  'start begin launch boot init initialize open run spawn',
  'stop end halt shutdown terminate close kill abort exit',
  'cancel abort interrupt signal',
  'cache memoize memo store remember',
  'queue buffer backlog pending',
  'limit throttle cap bound quota max',
  'retry backoff again attempt resend',
  'timeout deadline expire expiry expiration ttl',
  'log logger logging trace print record',
  'database db sql store storage persistence repository table',
  'user account member profile person',
  'token jwt key secret credential bearer',
  'encrypt cipher crypto seal decrypt',
  'hash digest checksum fingerprint',
  'compress gzip deflate zip brotli',
  'request req http call',
  'response res reply answer result',
  'route router routing path url endpoint',
  'middleware interceptor hook filter plugin handler',
  'event message notification signal callback',
  'list collection array items enumerate',
  'map dictionary hash object record table lookup',
  'count number total amount length size',
  'copy clone duplicate replicate',
  'move rename relocate',
  'directory folder dir path',
  'file document blob',
  'test spec assert expect mock fixture',
  'convert transform translate map cast',
  'connect connection socket link attach dial',
  'disconnect detach close hangup',
  'thread worker concurrent parallel task job',
  'lock mutex semaphore synchronize exclusive',
  'schedule cron timer interval periodic',
  'date time timestamp clock calendar',
  'image picture photo bitmap',
  'mail email smtp message',
  'pay payment charge billing invoice checkout',
  'price cost amount fee total discount',
  'page pagination cursor offset paginate',
  'sort order rank compare',
  'merge combine join concat union',
  'split separate divide chunk partition segment',
  'stream pipe chunk flow',
  'session cookie login',
  'upload attach import',
  'download fetch export',
  'header metadata',
  'body payload content data',
  'version revision release',
  'client sdk consumer',
  'server listener backend host',
  'ui view component render display widget page',
  'state store status',
  'tree trie node hierarchy',
  'unique distinct dedupe duplicate',
  'random uuid nonce id identifier',
  'subscribe subscription listener watch observe',
  'origin cors cross preflight',
  'weak etag conditional cache',
  'static asset public serve',
  'sign signature signing hmac verify',
]

const byWord = new Map<string, Set<string>>()
for (const group of groups) {
  const stems = group.split(' ').map(stem)
  for (const word of stems) {
    const related = byWord.get(word) ?? new Set<string>()
    for (const other of stems) if (other !== word) related.add(other)
    byWord.set(word, related)
  }
}

/** Stems that may stand in for this one. */
export function relatedTo(word: string): ReadonlySet<string> {
  return byWord.get(word) ?? none
}

const none: ReadonlySet<string> = new Set()
