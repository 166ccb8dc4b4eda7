/** The native helper, embedded in the executable; from the sources it is the one that `npm run build` made. */
import helperSource from '../../dist/hutch-helper' with { type: 'file' }

export { helperSource }
